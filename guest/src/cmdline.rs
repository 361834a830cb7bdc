// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel was asked to do.
//!
//! The line is `key=value` words. Words that are not ours are left alone, because Xen appends its
//! own to the initial domain's line; a word of ours with a value that cannot be is an error.

use core::fmt;
use core::str::FromStr;

/// The `clocks` self-test's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClocksOptions {
    /// `span_ns`: virtual time from the first reading to the last, ns.
    pub span_ns: u64,
    /// `samples`: readings of each clock after the first.
    pub samples: u32,
    /// `seed`: of the gaps between readings.
    pub seed: u64,
}

impl Default for ClocksOptions {
    fn default() -> Self {
        Self { span_ns: 200_000_000, samples: 20, seed: 1 }
    }
}

/// The parameters of the self-tests `changes` and `armed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangesOptions {
    /// `span_ns`: virtual time for which it runs, ns.
    pub span_ns: u64,
    /// `seed`: of what its timers are set to.
    pub seed: u64,
    /// `late_ns`: real time by which a timer may be late, besides what Xen needs, ns: where the machine's
    /// processors are not its own.
    pub late_ns: u64,
}

/// The `hostile` self-test's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostileOptions {
    /// `calls`: hypercalls that each vCPU makes.
    pub calls: u64,
    /// `seed`: of what they ask for.
    pub seed: u64,
}

/// What the kernel does before it powers off.
/// What the kernel does, before it powers off if that has an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Shows its clocks ten times.
    Demo,
    /// `test=clocks`.
    Clocks(ClocksOptions),
    /// `test=paths`.
    Paths,
    /// `test=changes`.
    Changes(ChangesOptions),
    /// `test=armed`.
    Armed(ChangesOptions),
    /// `test=hostile`.
    Hostile(HostileOptions),
    /// `test=watchdog-bite`.
    WatchdogBite,
    /// `test=cost`.
    Cost,
    /// `test=model`.
    Model,
    /// `role=switch`: for ever, until the domain is shut down.
    Switch,
}

/// Hypercalls of a hostile vCPU, unless told otherwise.
const CALLS: u64 = 100_000;
/// Most readings of a clock: they are kept in memory until the end.
pub const SAMPLES_MAX: u32 = 1000;
/// Longest span, ns: eleven days.
pub const SPAN_MAX_NS: u64 = 1_000_000_000_000_000;
/// Shortest mean gap between readings, ns.
pub const GAP_MIN_NS: u64 = 10_000;

/// Why a command line cannot be obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmdlineError<'a> {
    /// There is no such test.
    UnknownTest(&'a str),
    /// There is no such role.
    UnknownRole(&'a str),
    /// Not a number, or too large a one.
    NotANumber {
        /// The key.
        key: &'static str,
        /// Its value.
        value: &'a str,
    },
    /// Outside 1 … [`SAMPLES_MAX`].
    Samples(u32),
    /// Outside [`GAP_MIN_NS`] a sample … [`SPAN_MAX_NS`].
    Span {
        /// The span.
        span_ns: u64,
        /// The samples in it.
        samples: u32,
    },
}

impl fmt::Display for CmdlineError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownTest(name) => {
                write!(
                    f,
                    "test={name}: the tests are `clocks`, `paths`, `changes`, `armed`, `hostile`, `watchdog-bite`, `cost` and `model`"
                )
            }
            Self::UnknownRole(name) => write!(f, "role={name}: the only role is `switch`"),
            Self::NotANumber { key, value } => {
                write!(f, "{key}={value}: expected a decimal number below 2^64")
            }
            Self::Samples(n) => write!(f, "samples={n}: expected 1 to {SAMPLES_MAX}"),
            Self::Span { span_ns, samples } => write!(
                f,
                "span_ns={span_ns}: expected at least {GAP_MIN_NS} for each of the {samples} \
                 samples, and at most {SPAN_MAX_NS}"
            ),
        }
    }
}

impl core::error::Error for CmdlineError<'_> {}

fn number<'a, T: FromStr>(key: &'static str, value: &'a str) -> Result<T, CmdlineError<'a>> {
    value.parse().map_err(|_| CmdlineError::NotANumber { key, value })
}

/// The task that `line` asks for; of a key given twice, the last counts.
///
/// # Errors
/// [`CmdlineError`] if a value cannot be.
pub fn parse(line: &str) -> Result<Task, CmdlineError<'_>> {
    let (mut test, mut role) = (None, None);
    let mut options = ClocksOptions::default();
    let mut calls = CALLS;
    let mut late_ns = 0;
    for word in line.split_ascii_whitespace() {
        match word.split_once('=') {
            Some(("test", value)) => test = Some(value),
            Some(("role", value)) => role = Some(value),
            Some(("span_ns", value)) => options.span_ns = number("span_ns", value)?,
            Some(("samples", value)) => options.samples = number("samples", value)?,
            Some(("calls", value)) => calls = number("calls", value)?,
            Some(("seed", value)) => options.seed = number("seed", value)?,
            Some(("late_ns", value)) => late_ns = number::<u32>("late_ns", value)?.into(),
            _ => {}
        }
    }
    let ClocksOptions { span_ns, samples, seed } = options;
    if !(1..=SAMPLES_MAX).contains(&samples) {
        return Err(CmdlineError::Samples(samples));
    }
    if !(GAP_MIN_NS * u64::from(samples)..=SPAN_MAX_NS).contains(&span_ns) {
        return Err(CmdlineError::Span { span_ns, samples });
    }
    match role {
        None => {}
        Some("switch") => return Ok(Task::Switch),
        Some(name) => return Err(CmdlineError::UnknownRole(name)),
    }
    match test {
        None => Ok(Task::Demo),
        Some("clocks") => Ok(Task::Clocks(options)),
        Some("paths") => Ok(Task::Paths),
        Some("changes") => Ok(Task::Changes(ChangesOptions { span_ns, seed, late_ns })),
        Some("armed") => Ok(Task::Armed(ChangesOptions { span_ns, seed, late_ns })),
        Some("hostile") => Ok(Task::Hostile(HostileOptions { calls, seed })),
        Some("watchdog-bite") => Ok(Task::WatchdogBite),
        Some("cost") => Ok(Task::Cost),
        Some("model") => Ok(Task::Model),
        Some(name) => Err(CmdlineError::UnknownTest(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_keys_of_the_probe_protocol() {
        let options = ClocksOptions { span_ns: 5_000_000, samples: 7, seed: u64::MAX };
        let line = "test=clocks span_ns=5000000 samples=7 seed=18446744073709551615";
        assert_eq!(parse(line), Ok(Task::Clocks(options)));
        assert_eq!(parse("test=clocks"), Ok(Task::Clocks(ClocksOptions::default())));
        assert_eq!(parse("test=paths seed=1"), Ok(Task::Paths));
        let changes = ChangesOptions { span_ns: 5_000_000, seed: 3, late_ns: 7 };
        assert_eq!(
            parse("test=changes span_ns=5000000 seed=3 late_ns=7"),
            Ok(Task::Changes(changes))
        );
        assert_eq!(parse("test=armed span_ns=5000000 seed=3 late_ns=7"), Ok(Task::Armed(changes)));
        let hostile = HostileOptions { calls: 7, seed: 3 };
        assert_eq!(parse("test=hostile calls=7 seed=3"), Ok(Task::Hostile(hostile)));
        assert_eq!(parse("test=watchdog-bite"), Ok(Task::WatchdogBite));
        assert_eq!(parse("test=cost"), Ok(Task::Cost));
        assert_eq!(parse("test=model"), Ok(Task::Model));
        assert_eq!(parse("role=switch ports=4 port.0.rate=1Gbit/s"), Ok(Task::Switch));
        assert_eq!(parse(""), Ok(Task::Demo));
    }

    #[test]
    fn foreign_words_are_left_alone_and_the_last_of_two_counts() {
        let line = "root=/dev/xvda ro acpi=off test=x  test=clocks seed=1 seed=2 =";
        let options = ClocksOptions { seed: 2, ..ClocksOptions::default() };
        assert_eq!(parse(line), Ok(Task::Clocks(options)));
    }

    #[test]
    fn what_cannot_be_is_refused_and_named() {
        for (line, sentence) in [
            (
                "test=clock",
                "test=clock: the tests are `clocks`, `paths`, `changes`, `armed`, `hostile`, `watchdog-bite`, `cost` and `model`",
            ),
            ("role=router", "role=router: the only role is `switch`"),
            ("seed=-1", "seed=-1: expected a decimal number below 2^64"),
            ("samples=4294967296", "samples=4294967296: expected a decimal number below 2^64"),
            ("samples=0", "samples=0: expected 1 to 1000"),
            ("samples=1001", "samples=1001: expected 1 to 1000"),
            (
                "span_ns=99999 samples=10",
                "span_ns=99999: expected at least 10000 for each of the 10 samples, and at most \
                 1000000000000000",
            ),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), sentence);
        }
        assert!(parse("span_ns=100000 samples=10").is_ok());
    }

    proptest! {
        #[test]
        fn no_line_panics(line: String) {
            let _ = parse(&line);
        }
    }
}
