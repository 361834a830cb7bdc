// SPDX-License-Identifier: MIT OR Apache-2.0
//! Making a dilated domain, or none.
//!
//! The domain is built by the stock `xl create -p`, which leaves it paused and never run; then it
//! gets its factor, the factor is read back, and only then does it run. Whatever fails in between,
//! a signal included, the domain is destroyed: a guest that runs at the wrong speed is worse than
//! none.

use std::fmt;
use std::path::Path;

use tdf_abi::{Tdf, TdfError};

use crate::dom0::{Dom0, Listed, ToolError};
use crate::wanted::Wanted;
use crate::xen::{Control, Dilation, DomId, XenError};
use crate::xlcfg::{CfgError, Config, Place, Setting};

/// Options of `xl create` that make sense here; `-p` leaves the domain paused.
const XL_OPTIONS: [&str; 5] = ["-d", "-e", "-i", "-p", "-q"];

/// What is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The domain's name.
    pub name: String,
    /// The configuration, for xl.
    pub config: String,
    /// Further arguments of `xl create`.
    pub xl_args: Vec<String>,
    /// The factor; `None`: the hypervisor's default.
    pub tdf: Option<Tdf>,
    /// Let the domain read real time.
    pub reveal: bool,
}

/// A domain that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Created {
    /// Its id.
    pub id: DomId,
    /// How Xen made it, before anything was set.
    pub before: Dilation,
    /// How it is now.
    pub now: Dilation,
}

/// Why no domain was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// The configuration cannot be read.
    Read(String, String),
    /// The configuration is wrong.
    Config(CfgError),
    /// An argument that is not for `tdf create`.
    Argument(String),
    /// The name is taken.
    Exists(String, DomId),
    /// The toolstack failed.
    Tool(ToolError),
    /// Xen refused.
    Xen(XenError),
    /// xl says that it made the domain, but there is none.
    Vanished(String),
    /// Xen took the factor but reports another.
    NotTaken(Tdf, Tdf),
    /// Somebody pressed Ctrl-C.
    Interrupted,
    /// What happened first, and why the domain could not even be destroyed.
    LeftBehind(Box<CreateError>, String, ToolError),
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path, why) => write!(f, "cannot read {path}: {why}"),
            Self::Config(e) => e.fmt(f),
            Self::Argument(arg) => write!(
                f,
                "{arg:?} is no argument of tdf create: after the configuration it takes KEY=VALUE \
                 and the options {} of xl create",
                XL_OPTIONS.join(" ")
            ),
            Self::Exists(name, id) => {
                write!(f, "a domain called {name} exists already (id {id}); nothing was created")
            }
            Self::Tool(e) => e.fmt(f),
            Self::Xen(e) => e.fmt(f),
            Self::Vanished(name) => write!(f, "xl created {name}, but knows no such domain"),
            Self::NotTaken(wanted, got) => {
                write!(f, "TDF {wanted} was set, but Xen reports {got}")
            }
            Self::Interrupted => f.write_str("interrupted"),
            Self::LeftBehind(first, name, why) => {
                write!(
                    f,
                    "{first}\nthe domain {name} could not be destroyed and is still there: {why}"
                )
            }
        }
    }
}

impl std::error::Error for CreateError {}

impl From<CfgError> for CreateError {
    fn from(e: CfgError) -> Self {
        Self::Config(e)
    }
}

impl From<ToolError> for CreateError {
    fn from(e: ToolError) -> Self {
        Self::Tool(e)
    }
}

impl From<XenError> for CreateError {
    fn from(e: XenError) -> Self {
        Self::Xen(e)
    }
}

/// The `tdf` key of a configuration.
fn tdf_of(setting: &Setting) -> Result<Tdf, CfgError> {
    let Some(text) = setting.value.text() else {
        return Err(setting.error("expected one factor such as \"2.5\", found a list"));
    };
    let explain = |e: TdfError| setting.error(format_args!("{e}, without a unit"));
    if matches!(setting.value, crate::xlcfg::Value::Number(_)) {
        // A number is xl's number: 010 is 8.
        let number = setting.value.number().ok_or_else(|| explain(TdfError::Syntax))?;
        return Tdf::new(u32::try_from(number).unwrap_or(u32::MAX), 1).map_err(explain);
    }
    text.parse().map_err(explain)
}

fn switch(config: &Config, key: &str) -> Result<bool, CfgError> {
    match config.get(key) {
        None => Ok(false),
        Some(setting) => match setting.value.number() {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(setting.error("expected 0 or 1")),
        },
    }
}

/// Reads a configuration and the arguments that follow it: what to make, and what to warn of.
///
/// # Errors
/// Anything that xl or `tdf` would not understand.
pub fn plan(path: &Path, xl_args: &[String]) -> Result<(Plan, Vec<String>), CreateError> {
    let shown = path.display().to_string();
    let text = std::fs::read(path).map_err(|e| CreateError::Read(shown.clone(), e.to_string()))?;
    plan_of(&shown, &String::from_utf8_lossy(&text), xl_args)
}

fn plan_of(path: &str, text: &str, xl_args: &[String]) -> Result<(Plan, Vec<String>), CreateError> {
    let mut config = Config::parse(path, text)?;
    for arg in xl_args {
        if arg.contains('=') && !arg.starts_with('-') {
            config.append("the command line", arg)?;
        } else if !XL_OPTIONS.contains(&arg.as_str()) {
            return Err(CreateError::Argument(arg.clone()));
        }
    }
    let name = config.get("name").ok_or_else(|| CfgError {
        place: Place { source: path.to_owned(), line: 1 },
        message: "the domain has no name; write name = \"…\"".to_owned(),
    })?;
    let name = match name.value.text() {
        Some(text) if !text.is_empty() => text.to_owned(),
        _ => return Err(name.error("expected the domain's name").into()),
    };
    let tdf = config.get("tdf").map(tdf_of).transpose()?;
    let reveal = switch(&config, "tdf_reveal")?;
    let mut warnings = Vec::new();
    let on_reboot = config.get("on_reboot").and_then(|s| s.value.text()).unwrap_or("restart");
    if (tdf.is_some() || reveal) && on_reboot.contains("restart") {
        warnings.push(format!(
            "{path}: on_reboot is \"{on_reboot}\": when {name} reboots, xl makes it anew without \
             its TDF; use tdf create --watch, or write on_reboot = \"destroy\""
        ));
    }
    let plan = Plan { name, config: path.to_owned(), xl_args: xl_args.to_vec(), tdf, reveal };
    Ok((plan, warnings))
}

impl<M: Dom0> Control<M> {
    /// Makes the domain of `plan`, dilated and paused.
    ///
    /// # Errors
    /// With any error no domain is left, except as [`CreateError::LeftBehind`] says.
    pub fn build(&mut self, plan: &Plan) -> Result<Created, CreateError> {
        self.can_dilate()?;
        if let Some(id) = self.domid(&plan.name)? {
            return Err(CreateError::Exists(plan.name.clone(), id));
        }
        self.go_on()?;
        let mut args = vec!["create", "-p", "-f", &plan.config];
        args.extend(plan.xl_args.iter().map(String::as_str).filter(|arg| *arg != "-p"));
        if let Err(e) = self.xl(&args) {
            return Err(self.undo(&plan.name, e.into()));
        }
        self.dilate(plan).map_err(|e| self.undo(&plan.name, e))
    }

    fn dilate(&mut self, plan: &Plan) -> Result<Created, CreateError> {
        self.go_on()?;
        let id = self.domid(&plan.name)?.ok_or_else(|| CreateError::Vanished(plan.name.clone()))?;
        let before = self.get_tdf(id)?;
        let mut now = before;
        if plan.tdf.is_some() || plan.reveal {
            let wanted = plan.tdf.unwrap_or(before.tdf);
            self.set_tdf(id, wanted, plan.reveal)?;
            now = self.get_tdf(id)?;
            if now.tdf != wanted || now.reveal != plan.reveal {
                return Err(CreateError::NotTaken(wanted, now.tdf));
            }
        }
        self.go_on()?;
        Ok(Created { id, before, now })
    }

    /// Lets a domain that [`Control::build`] made run.
    ///
    /// # Errors
    /// As [`Control::build`].
    pub fn start(&mut self, name: &str) -> Result<(), CreateError> {
        let result = self.xl(&["unpause", name]).map(drop).map_err(CreateError::from);
        result.and_then(|()| self.go_on()).map_err(|e| self.undo(name, e))
    }

    /// Makes the domain of `plan` and lets it run, unless the user asked for `-p`.
    ///
    /// # Errors
    /// As [`Control::build`].
    pub fn create(&mut self, plan: &Plan) -> Result<Created, CreateError> {
        let created = self.build(plan)?;
        if let Some(tdf) = plan.tdf {
            let listed = Listed { name: plan.name.clone(), id: created.id };
            let wanted = Wanted { tdf, reveal: plan.reveal };
            self.remember(&listed, wanted).map_err(|e| self.undo(&plan.name, e.into()))?;
        }
        if !plan.xl_args.iter().any(|arg| arg == "-p") {
            self.start(&plan.name)?;
        }
        Ok(created)
    }

    fn go_on(&mut self) -> Result<(), CreateError> {
        if self.machine.interrupted() { Err(CreateError::Interrupted) } else { Ok(()) }
    }

    /// Destroys the domain called `name`, if there is one. The name was free before.
    fn undo(&mut self, name: &str, first: CreateError) -> CreateError {
        let result = self.domid(name).and_then(|id| match id {
            Some(id) => self.xl(&["destroy", &id.to_string()]).map(drop),
            None => Ok(()),
        });
        match result {
            Ok(()) => first,
            Err(why) => CreateError::LeftBehind(Box::new(first), name.to_owned(), why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fault, Machine};

    fn read(text: &str) -> Result<(Plan, Vec<String>), CreateError> {
        plan_of("guest.cfg", text, &[])
    }

    fn tdf(text: &str) -> Tdf {
        text.parse().unwrap()
    }

    const ORDINARY: &str = "name = \"web\"\non_reboot = \"destroy\"\ntdf = \"5/2\"\n";

    fn ordinary() -> Plan {
        read(ORDINARY).unwrap().0
    }

    #[test]
    fn the_key_is_read_as_it_is_written() {
        for (value, factor) in [
            ("\"10\"", Some("10")),
            ("'2.5'", Some("5/2")),
            ("\"1/4\"", Some("1/4")),
            ("10", Some("10")),
            ("0x10", Some("16")),
        ] {
            let (plan, _) = read(&format!("name='a'\ntdf = {value}\n")).unwrap();
            assert_eq!(plan.tdf, factor.map(tdf), "{value}");
        }
        let (plan, warnings) = read("name='a'\n").unwrap();
        assert_eq!((plan.tdf, plan.reveal, warnings.len()), (None, false, 0));
        assert!(read("name='a'\ntdf_reveal=1").unwrap().0.reveal);
    }

    #[test]
    fn a_wrong_key_is_refused_with_file_line_input_and_reason() {
        for (line, says) in [
            ("tdf = 0", "tdf = 0: a TDF lies between 1/1000 and 1000"),
            ("tdf = 2.5", "tdf = 2.5: "),
            ("tdf = \"10x\"", "tdf = \"10x\": a TDF is written 10, 2.5 or 5/2"),
            ("tdf = \"10 s\"", "tdf = \"10 s\": a TDF is written 10, 2.5 or 5/2, without a unit"),
            ("tdf = 10x", "tdf = 10x: a TDF is written"),
            ("tdf = 10 s", "found `s`"),
            ("tdf = 5000", "between"),
            ("tdf = 99999999999999999999", "tdf = 99999999999999999999: "),
            ("tdf = \"\"", "is written"),
            ("tdf = [ \"10\" ]", "found a list"),
            ("tdf = \"-3\"", "is written"),
            ("tdf_reveal = 2", "tdf_reveal = 2: expected 0 or 1"),
            ("tdf_reveal = 'yes'", "expected 0 or 1"),
            ("name = []", "expected the domain's name"),
        ] {
            let error = read(&format!("name = 'a'\n\n{line}\n")).unwrap_err().to_string();
            assert!(error.starts_with("guest.cfg:3: "), "{line}: {error}");
            assert!(error.contains(says) && !error.contains('\n'), "{line}: {error}");
        }
        assert!(read("tdf = 1").unwrap_err().to_string().contains("name"));
    }

    #[test]
    fn arguments_override_the_file_as_xl_lets_them() {
        let args = ["tdf=\"3\"".to_owned(), "-q".to_owned(), "name='b'".to_owned()];
        let (plan, warnings) = plan_of("guest.cfg", ORDINARY, &args).unwrap();
        assert_eq!((plan.name.as_str(), plan.tdf), ("b", Some(tdf("3"))));
        assert!(warnings.is_empty());
        for bad in ["-c", "other.cfg", "--defconfig=x", "-n"] {
            let error = plan_of("guest.cfg", ORDINARY, &[bad.to_owned()]).unwrap_err();
            assert_eq!(error, CreateError::Argument(bad.to_owned()));
        }
        let error = plan_of("guest.cfg", ORDINARY, &["tdf=0".to_owned()]).unwrap_err();
        assert!(error.to_string().starts_with("the command line:1: tdf = 0: "), "{error}");
    }

    #[test]
    fn a_restart_that_would_lose_the_factor_is_warned_of() {
        for (text, warns) in [
            ("name='a'\ntdf=2", true),
            ("name='a'\ntdf=2\non_reboot='rename-restart'", true),
            ("name='a'\ntdf=2\non_reboot='destroy'", false),
            ("name='a'\ntdf=2\non_reboot='preserve'", false),
            ("name='a'", false),
        ] {
            assert_eq!(!read(text).unwrap().1.is_empty(), warns, "{text}");
        }
    }

    #[test]
    fn a_domain_is_made_dilated_and_then_runs() {
        let mut control = Machine::control();
        let created = control.create(&ordinary()).unwrap();
        assert_eq!((created.before.tdf, created.now.tdf), (Tdf::ONE, tdf("5/2")));
        let domain = control.machine.domain("web").unwrap();
        assert_eq!(domain.started_at, Some(tdf("5/2")));
    }

    #[test]
    fn without_a_key_the_default_of_the_hypervisor_holds_and_nothing_is_set() {
        let mut control = Machine::control();
        control.machine.default = tdf("20");
        let created = control.create(&Plan { tdf: None, ..ordinary() }).unwrap();
        assert_eq!((created.before, created.now.tdf), (created.now, tdf("20")));
        assert_eq!(control.machine.sets, 0);
    }

    #[test]
    fn paused_on_request_stays_paused() {
        let mut control = Machine::control();
        let plan = Plan { xl_args: vec!["-p".to_owned(), "-q".to_owned()], ..ordinary() };
        control.create(&plan).unwrap();
        assert!(!control.machine.domain("web").unwrap().running());
    }

    #[test]
    fn whatever_fails_no_domain_is_left_and_none_ran_undilated() {
        for (fault, says) in [
            (Fault::NoPatch, "this hypervisor has no time dilation"),
            (Fault::Create, "`xl create -p -f guest.cfg` failed"),
            (Fault::CreateHalf, "`xl create -p -f guest.cfg` failed"),
            (Fault::Set(libc::EPERM), "stay at TDF 1"),
            (Fault::Set(libc::EINVAL), "does not take TDF 5/2"),
            (Fault::Set(libc::EOPNOTSUPP), "cannot dilate domain"),
            (Fault::Set(libc::ESRCH), "no domain with the id"),
            (Fault::SetIgnored, "Xen reports 1"),
            (Fault::Unpause, "`xl unpause web` failed"),
            (Fault::StoreFull, "`xenstore-write /tool/tdf/"),
        ] {
            let mut control = Machine::control();
            control.machine.fault = Some(fault);
            let error = control.create(&ordinary()).unwrap_err().to_string();
            assert!(error.contains(says), "{fault:?}: {error}");
            assert!(control.machine.domains.is_empty(), "{fault:?}");
            assert!(!control.machine.ran_undilated, "{fault:?}");
        }
    }

    #[test]
    fn a_signal_at_any_moment_leaves_no_domain() {
        // The machine is asked a few times whether to go on; each time may be the last.
        let mut moments = 0;
        loop {
            let mut control = Machine::control();
            control.machine.interrupt_after = Some(moments);
            match control.create(&ordinary()) {
                Err(error) => assert_eq!(error, CreateError::Interrupted),
                Ok(_) => break,
            }
            assert!(control.machine.domains.is_empty(), "moment {moments}");
            moments += 1;
        }
        assert!(moments >= 4);
    }

    #[test]
    fn a_name_that_is_taken_costs_its_owner_nothing() {
        let mut control = Machine::control();
        control.create(&ordinary()).unwrap();
        let error = control.create(&ordinary()).unwrap_err();
        assert!(matches!(error, CreateError::Exists(..)), "{error}");
        assert_eq!(control.machine.domains.len(), 1);
    }

    #[test]
    fn a_domain_that_cannot_be_destroyed_is_reported() {
        let mut control = Machine::control();
        control.machine.fault = Some(Fault::Set(libc::EPERM));
        control.machine.indestructible = true;
        let error = control.create(&ordinary()).unwrap_err().to_string();
        assert!(error.contains("stay at TDF 1") && error.contains("is still there"), "{error}");
    }
}
