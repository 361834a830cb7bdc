// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `tdf` needs of dom0 besides hypercalls: the stock tools, the consoles and the time.
//!
//! Domains are made and unmade by the stock `xl`, so that everything that xl knows keeps working and
//! `tdf` stays small. [`Dom0`] is the seam; [`crate::host::Host`] is the real one, a fake with
//! domains that read their clocks is the other.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::xen::{Control, DomId, Hypervisor, XenError};

/// What a command did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolOutput {
    /// It exited with 0.
    pub ok: bool,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// An open console of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsoleId(pub usize);

/// What came from a console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleEvent {
    /// The domain wrote this.
    Bytes(ConsoleId, Vec<u8>),
    /// There will be no more.
    Closed(ConsoleId),
}

/// dom0.
pub trait Dom0: Hypervisor {
    /// Runs a command of the toolstack to its end.
    ///
    /// # Errors
    /// It could not be started.
    fn tool(&mut self, program: &str, args: &[&str]) -> io::Result<ToolOutput>;

    /// Puts `text` into a private file, whose name depends on `folder` and `name` only.
    ///
    /// # Errors
    /// No room, no right.
    fn write_config(&mut self, folder: &str, name: &str, text: &str) -> io::Result<PathBuf>;

    /// Opens the console whose terminal is `tty`.
    ///
    /// # Errors
    /// No such terminal.
    fn open_console(&mut self, tty: &str) -> io::Result<ConsoleId>;

    /// Types `bytes` on a console.
    ///
    /// # Errors
    /// It is closed, or takes nothing.
    fn write_console(&mut self, console: ConsoleId, bytes: &[u8]) -> io::Result<()>;

    /// Waits until a console has something or `timeout` has passed, whichever is first.
    ///
    /// # Errors
    /// The consoles cannot be watched.
    fn wait(&mut self, timeout: Duration) -> io::Result<Vec<ConsoleEvent>>;

    /// Waits, and looks at nothing; a signal may cut it short.
    fn pause(&mut self, time: Duration);

    /// Real time since any origin.
    fn now(&mut self) -> Duration;

    /// Whether somebody asked `tdf` to stop (SIGINT, SIGTERM, SIGHUP).
    fn interrupted(&mut self) -> bool;

    /// One line of the event log.
    fn log(&mut self, line: &str);
}

/// Why the toolstack did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolError {
    /// It could not be started.
    Start(String, String),
    /// It failed; what was run, and the last lines that it wrote.
    Failed(String, String),
    /// It said something else than expected.
    Answer(String, String),
    /// No domain with this name or id.
    NoDomain(String),
}

impl fmt::Display for ToolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(what, why) => write!(f, "cannot run `{what}`: {why}"),
            Self::Failed(what, tail) if tail.is_empty() => write!(f, "`{what}` failed"),
            Self::Failed(what, tail) => write!(f, "`{what}` failed:\n{tail}"),
            Self::Answer(what, answer) => write!(f, "`{what}` gave an unexpected answer: {answer}"),
            Self::NoDomain(name) => write!(f, "there is no domain {name:?}"),
        }
    }
}

impl std::error::Error for ToolError {}

/// Lines of a failed command's output that are shown.
const TAIL: usize = 12;

fn tail(output: &ToolOutput) -> String {
    let lines: Vec<&str> =
        output.out.lines().chain(output.err.lines()).filter(|l| !l.trim().is_empty()).collect();
    let shown = lines[lines.len().saturating_sub(TAIL)..].iter();
    shown.map(|line| format!("    {}", printable(line))).collect::<Vec<_>>().join("\n")
}

/// `text` without control characters, for a terminal.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

/// A domain as `xl list` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: DomId,
}

impl<M: Dom0> Control<M> {
    /// A command, which must succeed.
    ///
    /// # Errors
    /// It could not be started, or failed.
    pub fn tool(&mut self, program: &str, args: &[&str]) -> Result<ToolOutput, ToolError> {
        let shown = || [&[program], args].concat().join(" ");
        let output = self
            .machine
            .tool(program, args)
            .map_err(|e| ToolError::Start(shown(), e.to_string()))?;
        if output.ok { Ok(output) } else { Err(ToolError::Failed(shown(), tail(&output))) }
    }

    /// `xl args…`, which must succeed.
    ///
    /// # Errors
    /// It could not be started, or failed.
    pub fn xl(&mut self, args: &[&str]) -> Result<ToolOutput, ToolError> {
        self.tool("xl", args)
    }

    /// The id of the domain called `name`, `None` if there is none.
    ///
    /// # Errors
    /// xl could not be started, or answered nonsense.
    pub fn domid(&mut self, name: &str) -> Result<Option<DomId>, ToolError> {
        match self.xl(&["domid", name]) {
            Ok(output) => match parse_id(output.out.trim()) {
                Some(id) => Ok(Some(id)),
                None => Err(ToolError::Answer(format!("xl domid {name}"), printable(&output.out))),
            },
            Err(ToolError::Failed(..)) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// All domains.
    ///
    /// # Errors
    /// xl failed, or answered nonsense.
    pub fn domains(&mut self) -> Result<Vec<Listed>, ToolError> {
        let output = self.xl(&["list"])?;
        let mut domains = Vec::new();
        for line in output.out.lines().skip(1).filter(|line| !line.trim().is_empty()) {
            match parse_list_line(line) {
                Some(listed) => domains.push(listed),
                None => return Err(ToolError::Answer("xl list".to_owned(), printable(line))),
            }
        }
        Ok(domains)
    }

    /// The domain that the user calls `who`: a number is an id, anything else a name, as for xl.
    ///
    /// # Errors
    /// There is none; xl failed.
    pub fn find(&mut self, who: &str) -> Result<Listed, ToolError> {
        let missing = || ToolError::NoDomain(who.to_owned());
        if !who.bytes().all(|b| b.is_ascii_digit()) || who.is_empty() {
            let id = self.domid(who)?.ok_or_else(missing)?;
            return Ok(Listed { name: who.to_owned(), id });
        }
        let id = parse_id(who).ok_or_else(missing)?;
        match self.xl(&["domname", who]) {
            Ok(output) => Ok(Listed { name: output.out.trim().to_owned(), id }),
            Err(ToolError::Failed(..)) => Err(missing()),
            Err(other) => Err(other),
        }
    }

    /// The terminal of the domain's console, `None` if xenconsoled has not made it yet.
    ///
    /// # Errors
    /// xenstore-read could not be started.
    pub fn console_tty(&mut self, id: DomId) -> Result<Option<String>, ToolError> {
        let tty = self.xenstore_read(&format!("/local/domain/{id}/console/tty"))?;
        Ok(tty.filter(|tty| tty.starts_with("/dev/")))
    }

    /// What xenstore has at `path`, `None` if it has nothing there.
    ///
    /// # Errors
    /// xenstore-read could not be started.
    pub fn xenstore_read(&mut self, path: &str) -> Result<Option<String>, ToolError> {
        match self.tool("xenstore-read", &[path]) {
            Ok(output) => Ok(Some(output.out.trim().to_owned())),
            Err(ToolError::Failed(..)) => Ok(None),
            Err(other) => Err(other),
        }
    }

    /// Whether this Xen can dilate at all, asked before a domain is made in vain.
    ///
    /// # Errors
    /// It cannot.
    pub fn can_dilate(&mut self) -> Result<(), XenError> {
        self.get_tdf(DomId(0)).map(drop)
    }
}

fn parse_id(text: &str) -> Option<DomId> {
    text.parse().ok().filter(|&id| id < DomId::FIRST_RESERVED).map(DomId)
}

/// `NAME  ID  Mem VCPUs  State  Time(s)`, where the name may hold spaces.
fn parse_list_line(line: &str) -> Option<Listed> {
    let mut words = line.split_whitespace().rev();
    let id = parse_id(words.nth(4)?)?;
    let mut name: Vec<&str> = words.collect();
    name.reverse();
    Some(Listed { name: name.join(" "), id }).filter(|listed| !listed.name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_xl_list_are_read_from_the_right() {
        let listed = |line| parse_list_line(line).map(|l| (l.name, l.id.0));
        assert_eq!(
            listed("Domain-0                  0   512     1     r-----      12.3"),
            Some(("Domain-0".to_owned(), 0))
        );
        assert_eq!(
            listed("my guest 7                12  16     1     --p---       0.0"),
            Some(("my guest 7".to_owned(), 12))
        );
        for bad in ["", "a 1 2 3 4", "1 2 3 4 5", "a b 2 3 ---- 5", "a 65535 2 3 --- 5"] {
            assert_eq!(listed(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_a_guest_writes_cannot_drive_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\u{9b}"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
