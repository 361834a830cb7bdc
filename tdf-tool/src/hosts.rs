// SPDX-License-Identifier: MIT OR Apache-2.0
//! The domains of a network, spoken to over their consoles.
//!
//! A host does what `tdf-do ID COMMAND` on its console says, with stock tools, and answers line by
//! line. Commands may run at the same time, in one host and in several. No host is trusted: what it
//! says is cut to size, and all waiting has a deadline.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::create::CreateError;
use crate::dom0::{ConsoleEvent, ConsoleId, Dom0, Listed, printable};
use crate::xen::{Control, DomId, State};

/// Longest line that is taken from a console; longer ones are cut.
const LINE: usize = 4096;
/// Most lines of one answer that are kept.
const LINES: usize = 100_000;
/// How often a domain is looked at that says nothing.
const LOOK: Duration = Duration::from_millis(500);

/// A domain whose console is open.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) id: DomId,
    console: ConsoleId,
    partial: Vec<u8>,
    ready: bool,
}

/// What a command said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Its exit code.
    pub(crate) code: i32,
    /// Its output.
    pub(crate) lines: Vec<String>,
}

impl Answer {
    /// All lines as one text.
    pub(crate) fn text(&self) -> String {
        self.lines.join("\n")
    }
}

/// A command that runs.
#[derive(Debug)]
#[must_use]
pub(crate) struct Job {
    number: u32,
    host: usize,
    command: String,
}

/// All domains of a network.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    all: Vec<Host>,
    /// What commands have said, and how they ended.
    answers: BTreeMap<u32, (Answer, bool)>,
    next: u32,
}

impl Hosts {
    /// Adds a domain.
    pub(crate) fn add(&mut self, name: &str, id: DomId, console: ConsoleId) {
        let name = name.to_owned();
        self.all.push(Host { name, id, console, partial: Vec::new(), ready: false });
    }

    /// The domain called `name`.
    pub(crate) fn id(&self, name: &str) -> Option<DomId> {
        self.all.iter().find(|host| host.name == name).map(|host| host.id)
    }

    /// All domains.
    pub(crate) fn listed(&self) -> Vec<Listed> {
        self.all.iter().map(|host| Listed { name: host.name.clone(), id: host.id }).collect()
    }

    /// Takes what the consoles bring until `timeout` has passed or one has brought something.
    ///
    /// # Errors
    /// The consoles cannot be watched; somebody interrupted.
    pub(crate) fn listen<M: Dom0>(
        &mut self,
        control: &mut Control<M>,
        timeout: Duration,
    ) -> Result<(), String> {
        if control.machine.interrupted() {
            return Err(CreateError::Interrupted.to_string());
        }
        let events = control.machine.wait(timeout);
        for event in events.map_err(|e| format!("consoles cannot be watched: {e}"))? {
            let ConsoleEvent::Bytes(id, bytes) = event else { continue };
            let Some(host) = self.all.iter_mut().find(|host| host.console == id) else { continue };
            let mut lines = Vec::new();
            for byte in bytes {
                if byte == b'\n' {
                    let line = String::from_utf8_lossy(&host.partial).trim_end().to_owned();
                    host.partial.clear();
                    lines.push(line);
                } else if host.partial.len() < LINE {
                    host.partial.push(byte);
                }
            }
            for line in lines {
                host.ready |= line == "tdf-host ready";
                if !Self::answered(&mut self.answers, &line) && !line.is_empty() {
                    control.machine.log(&format!("{}| {}", host.name, printable(&line)));
                }
            }
        }
        Ok(())
    }

    /// Whether `line` is of an answer; if so it is taken.
    fn answered(answers: &mut BTreeMap<u32, (Answer, bool)>, line: &str) -> bool {
        let Some(rest) = line.strip_prefix("tdf-out ") else { return false };
        let (number, text) = rest.split_once(' ').unwrap_or((rest, ""));
        let Some((answer, over)) =
            number.parse().ok().and_then(|number: u32| answers.get_mut(&number))
        else {
            return true;
        };
        match text.strip_prefix("tdf-end ") {
            Some(code) => {
                answer.code = code.parse().unwrap_or(-1);
                *over = true;
            }
            None if !text.is_empty() && answer.lines.len() < LINES => {
                answer.lines.push(text.to_owned());
            }
            None => {}
        }
        true
    }

    /// Waits until the host called `name` is ready.
    ///
    /// # Errors
    /// It is not in time, or it is gone.
    pub(crate) fn ready<M: Dom0>(
        &mut self,
        control: &mut Control<M>,
        name: &str,
        limit: Duration,
    ) -> Result<(), String> {
        let at = self.at(name)?;
        let deadline = control.machine.now() + limit;
        while !self.all[at].ready {
            self.alive(control, at, deadline)
                .map_err(|why| format!("{name} is no host yet: {why}"))?;
            self.listen(control, LOOK)?;
        }
        Ok(())
    }

    fn at(&self, name: &str) -> Result<usize, String> {
        let at = self.all.iter().position(|host| host.name == name);
        at.ok_or_else(|| format!("there is no host {name}"))
    }

    fn alive<M: Dom0>(
        &self,
        control: &mut Control<M>,
        at: usize,
        deadline: Duration,
    ) -> Result<(), String> {
        match control.state(self.all[at].id).map_err(|e| e.to_string())? {
            State::Alive | State::Paused if control.machine.now() < deadline => Ok(()),
            State::Alive | State::Paused => Err("it did not end in time".to_owned()),
            State::Shutdown(reason) => Err(format!("the domain {reason}")),
            State::Gone => Err("the domain is gone".to_owned()),
        }
    }

    /// Makes the host called `name` run `command`.
    ///
    /// # Errors
    /// Its console takes nothing.
    pub(crate) fn start<M: Dom0>(
        &mut self,
        control: &mut Control<M>,
        name: &str,
        command: &str,
    ) -> Result<Job, String> {
        let host = self.at(name)?;
        self.next += 1;
        let number = self.next;
        control.machine.log(&format!("tdf| {name}: {command}"));
        self.answers.insert(number, (Answer::default(), false));
        control
            .machine
            .write_console(
                self.all[host].console,
                format!("tdf-do {number} {command}\n").as_bytes(),
            )
            .map_err(|e| format!("{name}: its console takes nothing: {e}"))?;
        Ok(Job { number, host, command: command.to_owned() })
    }

    /// Waits until a command has ended; fails if it does.
    ///
    /// # Errors
    /// It failed, or did not end within `limit` of real time.
    pub(crate) fn finish<M: Dom0>(
        &mut self,
        control: &mut Control<M>,
        job: Job,
        limit: Duration,
    ) -> Result<Answer, String> {
        let deadline = control.machine.now() + limit;
        loop {
            if let Some((answer, true)) = self.answers.get(&job.number) {
                let answer = answer.clone();
                self.answers.remove(&job.number);
                if answer.code != 0 {
                    let lines = &answer.lines[answer.lines.len().saturating_sub(4)..];
                    return Err(format!(
                        "{}: `{}` failed ({}): {}",
                        self.all[job.host].name,
                        job.command,
                        answer.code,
                        printable(&lines.join(" / "))
                    ));
                }
                return Ok(answer);
            }
            self.alive(control, job.host, deadline)
                .map_err(|why| format!("{}: `{}`: {why}", self.all[job.host].name, job.command))?;
            self.listen(control, LOOK)?;
        }
    }

    /// Runs `command` to its end.
    ///
    /// # Errors
    /// As [`Hosts::finish`].
    pub(crate) fn call<M: Dom0>(
        &mut self,
        control: &mut Control<M>,
        name: &str,
        command: &str,
        limit: Duration,
    ) -> Result<Answer, String> {
        let job = self.start(control, name, command)?;
        self.finish(control, job, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_sorted_by_command_and_end_with_their_code() {
        let mut answers = BTreeMap::from([(1, Default::default()), (2, Default::default())]);
        for (line, is) in [
            ("tdf-out 1 one", true),
            ("tdf-out 2 two", true),
            ("tdf-out 1 ", true),
            ("[    1.0] tdf-out 1 three", false),
            ("tdf-out 7 nobody asked", true),
            ("tdf-out x", true),
            ("tdf-out 2 tdf-end 3", true),
        ] {
            assert_eq!(Hosts::answered(&mut answers, line), is, "{line}");
        }
        let answer = |code, line: &str| Answer { code, lines: vec![line.to_owned()] };
        assert_eq!(answers[&1], (answer(0, "one"), false));
        assert_eq!(answers[&2], (answer(3, "two"), true));
    }
}
