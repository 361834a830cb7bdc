// SPDX-License-Identifier: MIT OR Apache-2.0
//! Giving several domains another factor in one instant.
//!
//! Domains that talk to each other are to change together: else one of them lives in the new time
//! while the other still lives in the old. All are paused; then an instant is chosen, which none of
//! them can have seen, and from that instant on all have the new factor; then they go on. A domain
//! that Xen refuses sets the others back.

use std::fmt;

use tdf_abi::Tdf;

use crate::dom0::{Dom0, Listed};
use crate::xen::{Control, Dilation, Instant, XenError};

/// How a change went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Together {
    /// The instant, real time, ns.
    pub real_ns: i64,
    /// Each domain before and after.
    pub changed: Vec<(Dilation, Dilation)>,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TogetherError {
    /// It is named twice.
    Twice(String),
    /// Xen refused; nothing had been changed.
    Xen(XenError),
    /// Xen refused one; so many others were set back.
    SetBack(XenError, usize),
    /// Xen took the factor of this domain but reports another, or another instant.
    NotTaken(String, Tdf),
    /// All have the factor; what went wrong afterwards follows.
    Changed(Tdf),
    /// What happened first, and what could not be undone: each a sentence.
    Half(Box<TogetherError>, Vec<String>),
}

impl fmt::Display for TogetherError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Twice(name) => write!(f, "{name} is named twice"),
            Self::Xen(e) => write!(f, "{e}; nothing was changed"),
            Self::SetBack(e, others) => {
                write!(f, "{e}; the {others} changed before it have their TDF of before again")
            }
            Self::NotTaken(name, tdf) => {
                write!(f, "{name}: TDF {tdf} was set, but Xen reports another change than that")
            }
            Self::Changed(tdf) => write!(f, "all have TDF {tdf} now"),
            Self::Half(first, left) => write!(f, "{first}\n{}", left.join("\n")),
        }
    }
}

impl std::error::Error for TogetherError {}

impl<M: Dom0> Control<M> {
    /// Gives all `domains` the factor `tdf` in one instant; with `wall` they get the wall clock of the
    /// first of them, too.
    ///
    /// # Errors
    /// With any error all have their old factor and run on, except as [`TogetherError::Half`] says.
    pub fn set_together(
        &mut self,
        domains: &[Listed],
        tdf: Tdf,
        wall: bool,
    ) -> Result<Together, TogetherError> {
        for (i, domain) in domains.iter().enumerate() {
            if domains[..i].iter().any(|other| other.id == domain.id) {
                return Err(TogetherError::Twice(domain.name.clone()));
            }
        }
        let mut paused = Vec::new();
        let result = self.pause_all(domains, &mut paused).map_err(TogetherError::Xen);
        let result = result.and_then(|()| self.change_all(domains, tdf, wall));
        let mut left = Vec::new();
        for listed in paused {
            match self.unpause(listed.id) {
                // It ended meanwhile, which it is free to do.
                Ok(()) | Err(XenError::NoDomain(_)) => {}
                Err(e) => left.push(format!("{} is still paused: {e}", listed.name)),
            }
        }
        match result {
            Ok(together) if left.is_empty() => Ok(together),
            Ok(_) => Err(TogetherError::Half(Box::new(TogetherError::Changed(tdf)), left)),
            Err(TogetherError::Half(first, mut more)) => {
                more.extend(left);
                Err(TogetherError::Half(first, more))
            }
            Err(first) if left.is_empty() => Err(first),
            Err(first) => Err(TogetherError::Half(Box::new(first), left)),
        }
    }

    fn pause_all<'a>(
        &mut self,
        domains: &'a [Listed],
        paused: &mut Vec<&'a Listed>,
    ) -> Result<(), XenError> {
        for listed in domains {
            self.pause(listed.id)?;
            paused.push(listed);
        }
        Ok(())
    }

    fn change_all(
        &mut self,
        domains: &[Listed],
        tdf: Tdf,
        wall: bool,
    ) -> Result<Together, TogetherError> {
        let all =
            domains.iter().map(|listed| self.get_tdf(listed.id)).collect::<Result<Vec<_>, _>>();
        let before = all.map_err(TogetherError::Xen)?;
        // Whoever lost its right to read real time together with its factor gets it back.
        let reveals: Vec<bool> = domains
            .iter()
            .zip(&before)
            .map(|(listed, old)| {
                let wanted = self.wanted(listed.id).ok().flatten();
                old.reveal || wanted.is_some_and(|wanted| wanted.reveal)
            })
            .collect();
        // When the last was read all were paused, and none has run since.
        let Some(instant) = before.iter().map(|d| d.real_ns).max() else {
            return Ok(Together { real_ns: 0, changed: Vec::new() });
        };
        let wall_ns = before.first().filter(|_| wall).map(|first| first.wall_at(instant));
        let at = Instant { real_ns: instant, wall_ns };
        let mut changed: Vec<(&Listed, &Dilation)> = Vec::new();
        for ((listed, old), reveal) in domains.iter().zip(&before).zip(reveals) {
            if let Err(e) = self.set_tdf_at(listed.id, tdf, reveal, at) {
                return Err(self.set_back(&changed, at, e));
            }
            changed.push((listed, old));
        }
        let mut after = Vec::new();
        for (listed, old) in &changed {
            let now = self.get_tdf(listed.id).map_err(TogetherError::Xen)?;
            // Xen starts no new segment where the factor is the old one.
            let instant_kept = now.real0_ns == instant || old.tdf == tdf;
            if now.tdf != tdf || !instant_kept {
                let first = TogetherError::NotTaken(listed.name.clone(), tdf);
                let left = self.restore(&changed, at);
                let nothing = left.is_empty();
                return Err(if nothing {
                    first
                } else {
                    TogetherError::Half(Box::new(first), left)
                });
            }
            after.push((**old, now));
        }
        Ok(Together { real_ns: instant, changed: after })
    }

    fn set_back(
        &mut self,
        changed: &[(&Listed, &Dilation)],
        at: Instant,
        e: XenError,
    ) -> TogetherError {
        let left = self.restore(changed, at);
        let first = match changed.len() {
            0 => TogetherError::Xen(e),
            others => TogetherError::SetBack(e, others),
        };
        if left.is_empty() { first } else { TogetherError::Half(Box::new(first), left) }
    }

    /// Gives the domains what they had, from the same instant on, so that they notice nothing; a
    /// sentence for each that could not be given it.
    fn restore(&mut self, changed: &[(&Listed, &Dilation)], at: Instant) -> Vec<String> {
        let mut left = Vec::new();
        for (listed, old) in changed {
            let wall_ns = at.wall_ns.map(|_| old.wall_at(at.real_ns));
            let at = Instant { wall_ns, ..at };
            if let Err(e) = self.set_tdf_at(listed.id, old.tdf, old.reveal, at) {
                left.push(format!("{} could not be set back to TDF {}: {e}", listed.name, old.tdf));
            }
        }
        left
    }

    /// All that `who` names.
    ///
    /// # Errors
    /// One of them is no domain.
    pub fn find_all(&mut self, who: &[String]) -> Result<Vec<Listed>, crate::dom0::ToolError> {
        who.iter().map(|who| self.find(who)).collect()
    }
}

/// What a change of one or several domains is told as.
pub fn text(domains: &[Listed], together: &Together, tdf: Tdf, wall: bool) -> String {
    let mut out = String::new();
    for (listed, (before, _)) in domains.iter().zip(&together.changed) {
        out.push_str(&format!("{}: TDF {tdf}, was {}\n", listed.name, before.tdf));
    }
    if domains.len() > 1 {
        let seconds = crate::units::Seconds(together.real_ns);
        let wall = if wall { "; their wall clocks agree" } else { "" };
        out.push_str(&format!("all at {seconds} s of Xen's time{wall}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::create::Plan;
    use crate::fake::{Fault, Machine};

    fn tdf(text: &str) -> Tdf {
        text.parse().unwrap()
    }

    /// Three domains of TDF 10, 1 and 5/2, which were made at different times.
    fn three() -> (Control<Machine>, Vec<Listed>) {
        let mut control = Machine::control();
        for (name, factor) in [("a", "10"), ("b", "1"), ("c", "5/2")] {
            let plan = Plan {
                name: name.to_owned(),
                config: format!("{name}.cfg"),
                xl_args: Vec::new(),
                tdf: Some(tdf(factor)),
                reveal: name == "c",
            };
            control.machine.files.insert(plan.config.clone(), format!("name = '{name}'"));
            control.create(&plan).unwrap();
        }
        let names = ["a", "b", "c"].map(str::to_owned);
        let listed = control.find_all(&names).unwrap();
        (control, listed)
    }

    fn all(control: &mut Control<Machine>, domains: &[Listed]) -> Vec<Dilation> {
        domains.iter().map(|listed| control.get_tdf(listed.id).unwrap()).collect()
    }

    fn none_paused(control: &Control<Machine>) -> bool {
        control.machine.domains.iter().all(|domain| domain.paused == 0)
    }

    #[test]
    fn all_change_in_one_instant_and_go_on_from_what_they_were() {
        let (mut control, domains) = three();
        let together = control.set_together(&domains, tdf("5/2"), false).unwrap();
        let now = all(&mut control, &domains);
        for (i, (before, after)) in together.changed.iter().enumerate() {
            assert_eq!((now[i].tdf, now[i].reveal), (tdf("5/2"), before.reveal));
            let wide = i128::from;
            let instant = wide(together.real_ns) - wide(before.real0_ns);
            let expected = match before.active {
                true => wide(before.virt0_ns) + before.tdf.to_virtual(instant),
                false => wide(together.real_ns),
            };
            let ran = wide(together.real_ns) - wide(after.real0_ns);
            assert_eq!(wide(after.virt0_ns) + after.tdf.to_virtual(ran), expected, "{i}");
            assert_eq!(now[i].wall_ns - now[i].virt_ns, before.wall_ns - before.virt_ns);
        }
        // The one that had the factor already keeps its segment.
        assert_eq!(now[0].real0_ns, together.real_ns);
        assert_eq!(now[2].real0_ns, together.changed[2].0.real0_ns);
        assert!(none_paused(&control));
        let said = text(&domains, &together, tdf("5/2"), true);
        assert!(said.contains("b: TDF 5/2, was 1\n") && said.ends_with("wall clocks agree\n"));
    }

    #[test]
    fn wall_clocks_agree_on_that_of_the_first() {
        let (mut control, domains) = three();
        let before = all(&mut control, &domains);
        control.set_together(&domains, tdf("7"), true).unwrap();
        let now = all(&mut control, &domains);
        let at = now.iter().map(|d| d.real_ns).max().unwrap();
        let walls: Vec<i64> = now.iter().map(|d| d.wall_at(at)).collect();
        assert!(walls.windows(2).all(|pair| (pair[0] - pair[1]).abs() <= 1), "{walls:?}");
        let first = now[0].wall_ns - now[0].virt_ns;
        assert_eq!(first, before[0].wall_ns - before[0].virt_ns);
    }

    #[test]
    fn one_that_is_refused_sets_the_others_back_without_a_jump() {
        for wall in [false, true] {
            let (mut control, domains) = three();
            let before = all(&mut control, &domains);
            control.machine.fault = Some(Fault::SetOf(3, libc::EPERM));
            let error = control.set_together(&domains, tdf("7"), wall).unwrap_err();
            assert!(
                error
                    .to_string()
                    .ends_with("the 2 changed before it have their TDF of before again")
            );
            for (old, new) in before.iter().zip(all(&mut control, &domains)) {
                assert_eq!((new.tdf, new.reveal), (old.tdf, old.reveal));
                let passed = old.tdf.to_virtual((new.real_ns - old.real_ns).into());
                let off = i128::from(new.virt_ns - old.virt_ns) - passed;
                assert!((-1..=1).contains(&off), "{off}");
                assert!((new.wall_ns - new.virt_ns - old.wall_ns + old.virt_ns).abs() <= 1);
            }
            assert!(none_paused(&control));
        }
    }

    #[test]
    fn whatever_fails_all_run_on() {
        for (fault, says) in [
            (Fault::Pause(2), "pausing a domain failed"),
            (Fault::Pause(1), "nothing was changed"),
            (Fault::SetOf(1, libc::EINVAL), "from the instant"),
            (Fault::SetIgnored, "a: TDF 7 was set, but Xen reports another"),
        ] {
            let (mut control, domains) = three();
            control.machine.fault = Some(fault);
            let error = control.set_together(&domains, tdf("7"), false).unwrap_err().to_string();
            assert!(error.contains(says), "{says}: {error}");
            assert!(none_paused(&control), "{fault:?}");
            control.machine.fault = None;
            let factors: Vec<String> =
                all(&mut control, &domains).iter().map(|d| d.tdf.to_string()).collect();
            assert_eq!(factors, ["10", "1", "5/2"], "{fault:?}");
        }
        let (mut control, domains) = three();
        let twice = [domains[0].clone(), domains[0].clone()];
        let error = control.set_together(&twice, tdf("7"), false).unwrap_err();
        assert_eq!(error.to_string(), "a is named twice");
    }

    #[test]
    fn one_that_was_paused_stays_paused() {
        let (mut control, domains) = three();
        control.pause(domains[1].id).unwrap();
        control.set_together(&domains, tdf("7"), false).unwrap();
        assert_eq!(control.machine.domain("b").unwrap().paused, 1);
    }
}
