// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which factor a domain is to have, remembered where it outlives the domain.
//!
//! Xen forgets a factor with the domain that had it, and a domain that is rebooted, restored or
//! migrated is a new one, made by `xl`, which knows no factors. What a domain keeps is its UUID. So
//! `tdf` writes the wanted factor in dom0's part of xenstore, where no guest can read or write, and
//! `tdf list` compares. A restart of the host forgets all.

use tdf_abi::Tdf;

use crate::create::CreateError;
use crate::dom0::{Dom0, Listed, ToolError};
use crate::xen::{Control, Dilation, DomId};

/// The folder of the records: `UUID = "FACTOR reveal NAME"`, with `-` for `reveal` where the domain
/// may not read real time.
const FOLDER: &str = "/tool/tdf";

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// What a domain is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its factor.
    pub tdf: Tdf,
    /// It may read real time.
    pub reveal: bool,
}

const REVEAL: &str = "reveal";

impl Wanted {
    fn parse(value: &str) -> Option<Self> {
        let mut words = value.split(' ');
        let tdf = words.next()?.parse().ok()?;
        Some(Self { tdf, reveal: words.next()? == REVEAL })
    }
}

/// The UUID and the name in a line of `xenstore-ls -f`.
fn record_of(line: &str) -> Option<(&str, &str)> {
    let (uuid, value) = line.strip_prefix(FOLDER)?.strip_prefix('/')?.split_once(" = \"")?;
    let name = value.strip_suffix('"')?.splitn(3, ' ').nth(2)?;
    is_uuid(uuid).then_some((uuid, name))
}

impl<M: Dom0> Control<M> {
    fn uuid(&mut self, id: DomId) -> Result<Option<String>, ToolError> {
        let path = self.xenstore_read(&format!("/local/domain/{id}/vm"))?;
        let uuid = path.as_deref().and_then(|path| path.strip_prefix("/vm/"));
        Ok(uuid.filter(|uuid| is_uuid(uuid)).map(str::to_owned))
    }

    /// Remembers what the domain is to have, and forgets what is remembered of domains of its
    /// name that there were before.
    ///
    /// # Errors
    /// It could not be written down.
    pub fn remember(&mut self, listed: &Listed, wanted: Wanted) -> Result<(), ToolError> {
        let Some(uuid) = self.uuid(listed.id)? else {
            let what = format!("xenstore-read /local/domain/{}/vm", listed.id);
            return Err(ToolError::Answer(what, "no UUID".to_owned()));
        };
        let path = format!("{FOLDER}/{uuid}");
        let reveal = if wanted.reveal { REVEAL } else { "-" };
        let value = format!("{} {reveal} {}", wanted.tdf, listed.name);
        self.tool("xenstore-write", &[&path, &value])?;
        let all = match self.tool("xenstore-ls", &["-f", FOLDER]) {
            Ok(output) => output.out,
            Err(_) => String::new(),
        };
        for (other, name) in all.lines().filter_map(record_of) {
            if name == listed.name && other != uuid {
                // What cannot be removed is a small thing too many, and nothing else.
                let _ = self.tool("xenstore-rm", &[&format!("{FOLDER}/{other}")]);
            }
        }
        Ok(())
    }

    /// What the domain is to have, if anybody said so.
    ///
    /// # Errors
    /// xenstore-read could not be started.
    pub fn wanted(&mut self, id: DomId) -> Result<Option<Wanted>, ToolError> {
        if id == DomId(0) {
            return Ok(None);
        }
        let Some(uuid) = self.uuid(id)? else { return Ok(None) };
        let value = self.xenstore_read(&format!("{FOLDER}/{uuid}"))?;
        Ok(value.as_deref().and_then(Wanted::parse))
    }

    /// Gives the domain the factor `tdf` and remembers it; a domain that lost its right to read real
    /// time together with its factor gets it back. Returns how it was before.
    ///
    /// # Errors
    /// Xen refused, or it could not be written down.
    pub fn set_and_remember(&mut self, listed: &Listed, tdf: Tdf) -> Result<Dilation, CreateError> {
        let before = self.get_tdf(listed.id)?;
        let reveal = before.reveal || self.wanted(listed.id)?.is_some_and(|wanted| wanted.reveal);
        self.set_tdf(listed.id, tdf, reveal)?;
        let now = self.get_tdf(listed.id)?;
        if now.tdf != tdf {
            return Err(CreateError::NotTaken(tdf, now.tdf));
        }
        self.remember(listed, Wanted { tdf, reveal })?;
        Ok(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::Plan;
    use crate::fake::Machine;

    fn tdf(text: &str) -> Tdf {
        text.parse().unwrap()
    }

    fn with(name: &str, factor: Option<&str>) -> (Control<Machine>, Listed) {
        let mut control = Machine::control();
        let listed = add(&mut control, name, factor);
        (control, listed)
    }

    fn add(control: &mut Control<Machine>, name: &str, factor: Option<&str>) -> Listed {
        let config = format!("{name}.cfg");
        control.machine.files.insert(config.clone(), format!("name = '{name}'"));
        let plan = Plan {
            name: name.to_owned(),
            config,
            xl_args: Vec::new(),
            tdf: factor.map(tdf),
            reveal: factor == Some("5/2"),
        };
        let id = control.create(&plan).unwrap().id;
        Listed { name: name.to_owned(), id }
    }

    #[test]
    fn a_factor_outlives_the_domain_that_had_it() {
        let (mut control, web) = with("web", Some("5/2"));
        let wanted = Wanted { tdf: tdf("5/2"), reveal: true };
        assert_eq!(control.wanted(web.id), Ok(Some(wanted)));
        let again = control.machine.remake("web");
        assert_ne!(again, web.id);
        assert_eq!(control.get_tdf(again).unwrap().tdf, Tdf::ONE);
        assert_eq!(control.wanted(again), Ok(Some(wanted)));
        let before = control.set_and_remember(&Listed { id: again, ..web }, tdf("7")).unwrap();
        assert_eq!((before.tdf, before.reveal), (Tdf::ONE, false));
        assert!(control.get_tdf(again).unwrap().reveal, "what it had before the reboot");
        assert_eq!(control.wanted(again), Ok(Some(Wanted { tdf: tdf("7"), reveal: true })));
    }

    #[test]
    fn nothing_is_wanted_of_a_domain_that_nobody_gave_a_factor() {
        let (mut control, web) = with("web", None);
        assert_eq!(control.wanted(web.id), Ok(None));
        assert_eq!(control.wanted(DomId(0)), Ok(None));
        assert_eq!(control.wanted(DomId(77)), Ok(None));
    }

    #[test]
    fn records_of_former_domains_of_the_name_go_and_others_stay() {
        let (mut control, _) = with("web", Some("5/2"));
        let db = add(&mut control, "db", Some("3"));
        control.xl(&["destroy", "1"]).unwrap();
        let web = add(&mut control, "web", Some("4"));
        let plain = |text| Ok(Some(Wanted { tdf: tdf(text), reveal: false }));
        assert_eq!(control.wanted(web.id), plain("4"));
        assert_eq!(control.wanted(db.id), plain("3"));
        assert_eq!(control.machine.store.len(), 2, "{:?}", control.machine.store);
    }

    #[test]
    fn only_lines_of_records_are_records() {
        let uuid = "01234567-89ab-cdef-0123-456789abcdef";
        let line = format!("{FOLDER}/{uuid} = \"5/2 - my web\"");
        assert_eq!(record_of(&line), Some((uuid, "my web")));
        for bad in [
            String::new(),
            line.replace(uuid, "x"),
            line.replace("/tool", "/tools"),
            line.replace(" my web", ""),
            line.replace(" - my web", ""),
        ] {
            assert_eq!(record_of(&bad), None, "{bad}");
        }
    }
}
