// SPDX-License-Identifier: MIT OR Apache-2.0
//! `tdf create --watch`: a domain that keeps its factor when it reboots.
//!
//! `xl` makes a domain anew when it reboots, and lets it run at once, at TDF 1. Here `xl` is told not
//! to watch the domain; `tdf` does it instead, and makes it anew as it made it first: paused, dilated,
//! and only then running. At no moment is there a domain of that name that runs undilated.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use crate::create::{CreateError, Plan};
use crate::dom0::Dom0;
use crate::xen::{Control, DomId, ShutdownReason, State};
use crate::xlcfg::{CfgError, Config};

/// How often the domain is looked at; a hypercall each.
const LOOK: Duration = Duration::from_millis(100);

/// What is done with a domain that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Destroy,
    Restart,
    Preserve,
}

/// What the configuration says of each way to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    poweroff: Action,
    reboot: Action,
    watchdog: Action,
    crash: Action,
}

impl Ends {
    fn of(config: &Config) -> Result<Self, CfgError> {
        let action = |key: &str, usual| match config.get(key) {
            None => Ok(usual),
            Some(setting) => match setting.value.text() {
                Some("destroy") => Ok(Action::Destroy),
                Some("restart") => Ok(Action::Restart),
                Some("preserve") => Ok(Action::Preserve),
                _ => Err(setting.error(
                    "with --watch it is tdf that does this, and it knows \"destroy\", \"restart\" \
                     and \"preserve\" only",
                )),
            },
        };
        // xl's own defaults.
        Ok(Self {
            poweroff: action("on_poweroff", Action::Destroy)?,
            reboot: action("on_reboot", Action::Restart)?,
            watchdog: action("on_watchdog", Action::Destroy)?,
            crash: action("on_crash", Action::Destroy)?,
        })
    }

    const fn action(&self, reason: ShutdownReason) -> Action {
        match reason.0 {
            0 => self.poweroff,
            1 => self.reboot,
            // Suspended: the one who saves or migrates it does the rest.
            2 => Action::Preserve,
            4 => self.watchdog,
            _ => self.crash,
        }
    }
}

/// Reads what a configuration, and the settings that follow it, say of the domain's end.
///
/// # Errors
/// Anything that `tdf` cannot do.
pub fn ends(path: &Path, xl_args: &[String]) -> Result<Ends, CreateError> {
    let shown = path.display().to_string();
    let text = std::fs::read(path).map_err(|e| CreateError::Read(shown.clone(), e.to_string()))?;
    let mut config = Config::parse(&shown, &String::from_utf8_lossy(&text))?;
    for arg in xl_args.iter().filter(|arg| arg.contains('=')) {
        config.append("the command line", arg)?;
    }
    Ok(Ends::of(&config)?)
}

/// Why the watch is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Over {
    /// It ended, and was destroyed as its configuration says.
    Destroyed(ShutdownReason),
    /// It ended, and stays as it is.
    Preserved(ShutdownReason),
    /// Somebody else destroyed it.
    Gone,
    /// Somebody pressed Ctrl-C; the domain runs on.
    Interrupted,
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Destroyed(reason) => write!(f, "{reason}, and was destroyed"),
            Self::Preserved(reason) => write!(f, "{reason}, and was left as it is"),
            Self::Gone => f.write_str("is gone"),
            Self::Interrupted => {
                f.write_str("runs on and is no longer watched: a reboot leaves it stopped")
            }
        }
    }
}

impl<M: Dom0> Control<M> {
    /// Watches the domain `id` of `plan`, and makes it anew whenever `ends` says so.
    ///
    /// # Errors
    /// It could not be made anew; then there is none.
    pub fn keep(&mut self, plan: &Plan, ends: &Ends, mut id: DomId) -> Result<Over, CreateError> {
        loop {
            if self.machine.interrupted() {
                return Ok(Over::Interrupted);
            }
            let reason = match self.state(id)? {
                State::Gone => return Ok(Over::Gone),
                State::Shutdown(reason) => reason,
                State::Alive | State::Paused => {
                    self.machine.pause(LOOK);
                    continue;
                }
            };
            let action = ends.action(reason);
            if action == Action::Preserve {
                return Ok(Over::Preserved(reason));
            }
            self.xl(&["destroy", &id.to_string()])?;
            if action == Action::Destroy {
                return Ok(Over::Destroyed(reason));
            }
            let created = self.create(plan)?;
            id = created.id;
            let tdf = created.now.tdf;
            self.machine.log(&format!("{}: {reason}; now domain {id}, TDF {tdf}", plan.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fault, Machine};

    const CONFIG: &str = "name = 'web'\n";

    fn of(text: &str) -> Result<Ends, CfgError> {
        Ends::of(&Config::parse("web.cfg", text).unwrap())
    }

    /// A domain at TDF 10 that ends once for each of `reasons`, then powers off.
    fn kept(
        text: &str,
        reasons: &[u8],
        fault: Option<Fault>,
    ) -> (Result<Over, CreateError>, Control<Machine>) {
        let mut control = Machine::control();
        control.machine.files.insert("web.cfg".into(), text.into());
        control.machine.ends = reasons.to_vec();
        let plan = Plan {
            name: "web".into(),
            config: "web.cfg".into(),
            xl_args: vec!["-e".into()],
            tdf: Some("10".parse().unwrap()),
            reveal: false,
        };
        let created = control.create(&plan).unwrap();
        control.machine.fault = fault;
        let over = control.keep(&plan, &of(text).unwrap(), created.id);
        (over, control)
    }

    #[test]
    fn a_domain_that_reboots_is_made_anew_and_never_runs_undilated() {
        let (over, control) = kept(CONFIG, &[1, 1, 1, 0], None);
        assert_eq!(over, Ok(Over::Destroyed(ShutdownReason(0))));
        assert!(control.machine.domains.is_empty() && !control.machine.ran_undilated);
        assert_eq!(control.machine.log.len(), 3);
        assert_eq!(control.machine.log[0], "web: rebooted; now domain 2, TDF 10");
    }

    #[test]
    fn every_end_has_its_action() {
        let destroyed = |reason| Ok(Over::Destroyed(ShutdownReason(reason)));
        let preserved = |reason| Ok(Over::Preserved(ShutdownReason(reason)));
        for (text, reasons, over) in [
            ("", &[3][..], destroyed(3)),
            ("", &[4], destroyed(4)),
            ("", &[2], preserved(2)),
            ("on_crash = 'preserve'", &[3], preserved(3)),
            ("on_crash = 'restart'", &[3, 0], destroyed(0)),
            ("on_reboot = 'destroy'", &[1], destroyed(1)),
            ("on_watchdog = 'restart'", &[4, 3], destroyed(3)),
        ] {
            assert_eq!(kept(&format!("{CONFIG}{text}\n"), reasons, None).0, over, "{text}");
        }
        let error = of("name = 'web'\non_reboot = 'rename-restart'\n").unwrap_err().to_string();
        assert!(
            error.starts_with("web.cfg:2: on_reboot = ") && error.contains("restart"),
            "{error}"
        );
    }

    #[test]
    fn one_that_cannot_be_made_anew_is_not_there_at_all() {
        let (over, control) = kept(CONFIG, &[1, 0], Some(Fault::Set(libc::EPERM)));
        assert!(over.unwrap_err().to_string().contains("stay at TDF 1"));
        assert!(control.machine.domains.is_empty() && !control.machine.ran_undilated);
    }

    #[test]
    fn the_watch_ends_when_the_domain_is_gone_or_somebody_says_so() {
        let mut control = Machine::control();
        let plan = Plan {
            name: "web".into(),
            config: "web.cfg".into(),
            xl_args: Vec::new(),
            tdf: None,
            reveal: false,
        };
        let ends = of(CONFIG).unwrap();
        assert_eq!(control.keep(&plan, &ends, DomId(9)), Ok(Over::Gone));
        let id = control.create(&plan).unwrap().id;
        control.machine.interrupt_after = Some(5);
        assert_eq!(control.keep(&plan, &ends, id), Ok(Over::Interrupted));
        assert_eq!(control.machine.domains.len(), 1);
    }
}
