// SPDX-License-Identifier: MIT OR Apache-2.0
//! `tdf probe`: the clocks of an unmodified Linux guest, read from its user space.
//!
//! Each reading lies between two samples of Xen's real time, which the domain may take if it was
//! created with `tdf_reveal = 1`. Nothing is printed until all is read: a console is slow, and
//! writing to it would move the moments of the readings.

use std::fmt;
use std::fs::File;
use std::io;

use tdf_abi::{Tdf, TdfSample};
use tdf_xen::reading::{Judge, Reading};

use crate::privcmd::Privcmd;
use crate::scenario::Test;
use crate::xen::{Errno, Hypervisor, Op, sample};

/// The clocks that a probe reads.
pub trait Clocks {
    /// Real and virtual time in one instant.
    ///
    /// # Errors
    /// Xen's error number.
    fn sample(&mut self) -> Result<TdfSample, Errno>;
    /// `CLOCK_MONOTONIC`, ns.
    fn monotonic(&mut self) -> i64;
    /// `CLOCK_REALTIME`, ns.
    fn realtime(&mut self) -> i64;
    /// Sleeps until `CLOCK_MONOTONIC` is `deadline` ns.
    fn sleep_until(&mut self, deadline: i64);
}

/// What to do, from the kernel's command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// What is to be done: read the clocks now and then, or watch them while the factor changes.
    pub test: Test,
    /// For how much virtual time, ns.
    pub span_ns: i64,
    /// In how many steps.
    pub samples: u32,
    /// Seed of the steps' lengths.
    pub seed: u64,
}

/// Why there is no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeError {
    /// A key of the command line is missing or wrong.
    Parameter(&'static str),
    /// The domain may not read real time.
    Hidden,
    /// Linux lets nobody make hypercalls.
    Blocked,
    /// Xen without the patch.
    NoDilation,
    /// Any other error of the hypercall.
    Sample(Errno),
    /// Xen says that our factor is none.
    Nonsense(u32, u32),
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parameter(key) => write!(
                f,
                "the kernel's command line must say test=<clocks, paths or changes> span_ns=<ns> \
                 samples=<2…10000> seed=<number>; {key} is missing or wrong"
            ),
            Self::Hidden => {
                f.write_str("Xen hides real time from this domain; create it with tdf_reveal = 1")
            }
            Self::Blocked => f.write_str(
                "this Linux blocks hypercalls from user space; load xen-privcmd with unrestricted=1",
            ),
            Self::NoDilation => f.write_str("this hypervisor has no time dilation"),
            Self::Sample(errno) => write!(f, "real time cannot be sampled: {errno}"),
            Self::Nonsense(num, den) => write!(f, "Xen reports {num}/{den} as TDF, which is none"),
        }
    }
}

impl std::error::Error for ProbeError {}

impl From<Errno> for ProbeError {
    fn from(errno: Errno) -> Self {
        match errno.0 {
            libc::EPERM => Self::Hidden,
            libc::ENOSYS => Self::NoDilation,
            _ => Self::Sample(errno),
        }
    }
}

impl Parameters {
    /// Reads them from a kernel command line, whose other words are somebody else's.
    ///
    /// # Errors
    /// One is missing, or is no number in its range.
    pub fn parse(cmdline: &str) -> Result<Self, ProbeError> {
        let value = |key: &'static str| {
            let words = cmdline.split_whitespace().filter_map(|word| word.split_once('='));
            let found = words.rev().find(|(k, _)| *k == key).map(|(_, value)| value);
            found.ok_or(ProbeError::Parameter(key))
        };
        let test = match value("test")? {
            "clocks" => Test::Clocks,
            "paths" => Test::Paths,
            "changes" => Test::Changes,
            _ => return Err(ProbeError::Parameter("test")),
        };
        let number =
            |key: &'static str| value(key)?.parse::<u64>().map_err(|_| ProbeError::Parameter(key));
        let in_range = |key, most| {
            number(key).and_then(|n| match n {
                n if (1..=most).contains(&n) => Ok(n),
                _ => Err(ProbeError::Parameter(key)),
            })
        };
        let samples = in_range("samples", 10_000)? as u32;
        if samples < 2 {
            return Err(ProbeError::Parameter("samples"));
        }
        let span_ns = in_range("span_ns", i64::MAX as u64 / 4)? as i64;
        Ok(Self { test, span_ns, samples, seed: number("seed")? })
    }

    /// The line that asks a probe that serves.
    pub fn request(&self) -> String {
        let Self { test, span_ns, samples, seed } = self;
        format!("{ASK} test={test} span_ns={span_ns} samples={samples} seed={seed}\n")
    }

    /// What `line` asks for; `None` if it is no request.
    pub fn requested(line: &str) -> Option<Result<Self, ProbeError>> {
        let words = line.trim().strip_prefix(ASK)?.strip_prefix(' ')?;
        Some(Self::parse(words))
    }

    /// When to read, ns after the beginning: ascending, the last is the whole span.
    fn offsets(&self) -> Vec<i64> {
        let mut state = self.seed;
        // Between one and two parts each, so that no two readings are close.
        let mut sum = 0;
        let sums: Vec<i128> = (0..self.samples)
            .map(|_| {
                sum += (1 << 16) + i128::from(split_mix(&mut state) >> 48);
                sum
            })
            .collect();
        sums.iter().map(|part| (i128::from(self.span_ns) * part / sum) as i64).collect()
    }
}

/// SplitMix64.
pub(crate) const fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Real ns by which a sleeper may wake late, at `tdf`.
///
/// Real: Xen fires timers up to 50 µs late (`timer_slop`), and its scheduler lets whoever runs go on
/// for 1 ms (`sched_ratelimit_us`) before a domain that wakes preempts it. Virtual: Linux asks Xen
/// for no timer that is nearer than 100 µs (`xen_timer_slop`), so one that is due soon after another
/// comes late. A process of real-time priority has no timer slack of its own and waits for no other.
pub(crate) fn slack_real_ns(tdf: Tdf) -> i64 {
    50_000 + 1_000_000 + tdf.to_real(100_000) as i64
}

/// What the probe prints before it watches its clocks for `test=changes`.
pub const BEGIN: &str = "tdf-begin";

/// What it prints of them afterwards.
pub const CHANGES: [(&str, &str); 5] = [
    ("CHANGES", "reads"),
    ("CHANGES", "backward_steps"),
    ("CHANGES", "disagreement"),
    ("CHANGES", "sleeps"),
    ("CHANGES", "early_sleeps"),
];

/// First word of a line that asks a probe for readings.
const ASK: &str = "tdf-ask";

const WARM_UP: u32 = 16;
const MONOTONIC: &str = "CLOCK_MONOTONIC";
const REALTIME: &str = "CLOCK_REALTIME";
const NANOSLEEP: &str = "nanosleep";

/// Reads all `clocks` as `parameters` say.
///
/// # Errors
/// Real time cannot be sampled.
pub fn readings(
    clocks: &mut impl Clocks,
    parameters: &Parameters,
) -> Result<(Tdf, Vec<Reading<'static>>), ProbeError> {
    let first = clocks.sample()?;
    let tdf =
        Tdf::new(first.num, first.den).map_err(|_| ProbeError::Nonsense(first.num, first.den))?;
    let offsets = parameters.offsets();
    let mut readings = Vec::with_capacity(3 * (offsets.len() + 1));
    let slack = slack_real_ns(tdf);
    // Code and data that are not in the caches, or not even in memory, would widen the first.
    for _ in 0..WARM_UP {
        take(clocks, &mut readings, None)?;
        readings.clear();
    }
    let now = clocks.monotonic();
    clocks.sleep_until(now);
    let begin = take(clocks, &mut readings, None)?;
    for offset in offsets {
        clocks.sleep_until(begin + offset);
        take(clocks, &mut readings, Some((begin + offset, slack)))?;
    }
    Ok((tdf, readings))
}

/// Reads each clock once, after a sleep that was to end at a deadline, or after none.
fn take(
    clocks: &mut impl Clocks,
    readings: &mut Vec<Reading<'static>>,
    slept: Option<(i64, i64)>,
) -> Result<i64, ProbeError> {
    let before = clocks.sample()?.real_ns;
    let monotonic = clocks.monotonic();
    let between = clocks.sample()?.real_ns;
    let realtime = clocks.realtime();
    let after = clocks.sample()?.real_ns;
    let mut push = |clock, real_before_ns, real_after_ns, value_ns, slack_real_ns| {
        readings.push(Reading { clock, real_before_ns, real_after_ns, value_ns, slack_real_ns });
    };
    push(MONOTONIC, before, between, monotonic, 0);
    push(REALTIME, between, after, realtime, 0);
    match slept {
        // The sleep was over just before the first sample.
        Some((deadline, slack)) => push(NANOSLEEP, before, before, deadline, slack),
        None => push(NANOSLEEP, before, between, monotonic, 0),
    }
    Ok(monotonic)
}

/// What the probe prints: its readings and its own judgement of them.
pub fn transcript(tdf: Tdf, readings: &[Reading<'_>]) -> (String, bool) {
    let mut pass = true;
    let mut out = String::new();
    for clock in [MONOTONIC, REALTIME, NANOSLEEP] {
        let mut judge = Judge::new(tdf);
        for reading in readings.iter().filter(|reading| reading.clock == clock) {
            out.push_str(&format!("{reading}\n"));
            judge.add(reading);
        }
        pass &= judge.verdict().is_some_and(|verdict| verdict.pass);
    }
    out.push_str(if pass { "Test result: SUCCESS\n" } else { "Test result: FAILURE\n" });
    (out, pass)
}

/// This machine's clocks.
#[derive(Debug)]
pub struct Linux(Privcmd, Option<File>);

/// Where Linux shows the first processor's model specific registers.
const MSRS: &str = "/dev/cpu/0/msr";

impl Linux {
    /// Uses `privcmd`; locks all of this process's memory, so that no page fault falls between two
    /// samples, and gives it real-time priority, so that it wakes when its timer fires.
    ///
    /// # Errors
    /// This process may not do one of the two.
    pub fn new(privcmd: Privcmd) -> io::Result<Self> {
        let priority = libc::sched_param { sched_priority: 1 };
        // SAFETY: locking pages changes nothing that a program can see but its speed; `priority` is
        // valid for reading.
        let result = unsafe {
            match libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) {
                0 => libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority),
                error => error,
            }
        };
        // Where there is no such file, or no such register behind it, nothing of it is tried.
        let msrs = File::options().read(true).write(true).open(MSRS).ok();
        if result == 0 { Ok(Self(privcmd, msrs)) } else { Err(io::Error::last_os_error()) }
    }

    /// Uses `privcmd`, as an ordinary process.
    pub const fn ordinary(privcmd: Privcmd) -> Self {
        Self(privcmd, None)
    }

    /// The model specific registers of the first processor.
    pub(crate) const fn msrs(&self) -> Option<&File> {
        self.1.as_ref()
    }

    /// What carries out its hypercalls.
    pub(crate) const fn hypervisor(&mut self) -> &mut Privcmd {
        &mut self.0
    }

    /// Whether real time can be sampled.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(&mut self) -> Result<(), ProbeError> {
        let result = self.sample().map(drop).map_err(ProbeError::from);
        result.map_err(|e| self.explain(e))
    }

    /// Recent kernels refuse all hypercalls of an ordinary domain's user space, even those that Xen
    /// grants to everybody.
    fn explain(&mut self, error: ProbeError) -> ProbeError {
        match error {
            ProbeError::Hidden if self.0.call(Op::Version) == Err(Errno(libc::EPERM)) => {
                ProbeError::Blocked
            }
            other => other,
        }
    }

    /// Reads all clocks as `parameters` say.
    ///
    /// # Errors
    /// Real time cannot be sampled.
    pub fn readings(
        &mut self,
        parameters: &Parameters,
    ) -> Result<(Tdf, Vec<Reading<'static>>), ProbeError> {
        readings(self, parameters).map_err(|e| self.explain(e))
    }
}

fn clock(id: libc::clockid_t) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing, and both clocks exist on every Linux.
    unsafe { libc::clock_gettime(id, &raw mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

impl Clocks for Linux {
    fn sample(&mut self) -> Result<TdfSample, Errno> {
        sample(&mut self.0)
    }

    fn monotonic(&mut self) -> i64 {
        clock(libc::CLOCK_MONOTONIC)
    }

    fn realtime(&mut self) -> i64 {
        clock(libc::CLOCK_REALTIME)
    }

    fn sleep_until(&mut self, deadline: i64) {
        let time = libc::timespec {
            tv_sec: deadline.div_euclid(1_000_000_000),
            tv_nsec: deadline.rem_euclid(1_000_000_000),
        };
        let (id, flags) = (libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME);
        // SAFETY: `time` is valid for reading; the deadline is absolute, so nothing is handed back.
        while unsafe { libc::clock_nanosleep(id, flags, &raw const time, std::ptr::null_mut()) }
            == libc::EINTR
        {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest at `tdf` in which each operation takes some real time.
    struct Guest {
        tdf: Tdf,
        real: i64,
        late: i64,
        error_ppm: i64,
    }

    impl Guest {
        fn virt(&self) -> i64 {
            self.tdf.to_virtual(self.real.into()) as i64
        }
    }

    impl Clocks for Guest {
        fn sample(&mut self) -> Result<TdfSample, Errno> {
            self.real += 700;
            let virt_ns = self.virt();
            let (num, den) = (self.tdf.num(), self.tdf.den());
            Ok(TdfSample { real_ns: self.real, virt_ns, num, den })
        }

        fn monotonic(&mut self) -> i64 {
            self.real += 900;
            self.virt()
        }

        fn realtime(&mut self) -> i64 {
            self.real += 900;
            1_700_000_000_000_000_000 + self.virt() + self.virt() / 1_000_000 * self.error_ppm
        }

        fn sleep_until(&mut self, deadline: i64) {
            self.real = self.real.max(self.tdf.to_real(deadline.into()) as i64 + self.late);
        }
    }

    const PARAMETERS: Parameters =
        Parameters { test: Test::Clocks, span_ns: 400_000_000, samples: 20, seed: 7 };

    fn probe(tdf: &str, late: i64, error_ppm: i64) -> (Vec<Reading<'static>>, bool) {
        let mut guest = Guest { tdf: tdf.parse().unwrap(), real: 12_345, late, error_ppm };
        let (tdf, readings) = readings(&mut guest, &PARAMETERS).unwrap();
        let pass = transcript(tdf, &readings).1;
        (readings, pass)
    }

    #[test]
    fn right_clocks_pass_at_any_factor_and_are_read_over_the_whole_span() {
        for tdf in ["1", "10", "5/2", "1/2", "1000"] {
            let (readings, pass) = probe(tdf, 60_000, 0);
            assert!(pass, "{tdf}");
            assert_eq!(readings.len(), 3 * 21);
            let sleeps: Vec<i64> =
                readings.iter().filter(|r| r.clock == NANOSLEEP).map(|r| r.value_ns).collect();
            assert_eq!(sleeps[20] - sleeps[0], PARAMETERS.span_ns);
        }
    }

    #[test]
    fn wrong_clocks_and_early_or_late_sleeps_fail() {
        assert!(!probe("10", 0, 1).1, "1 ppm fast");
        assert!(!probe("10", -3_000, 0).1, "3 us early");
        let most = slack_real_ns("10".parse().unwrap());
        assert!(probe("10", most - 2_000, 0).1 && !probe("10", most + 2_000, 0).1);
    }

    #[test]
    fn the_transcript_is_what_dom0_reads() {
        let (readings, _) = probe("10", 0, 0);
        let (text, _) = transcript("10".parse().unwrap(), &readings);
        let parsed = text.lines().filter_map(Reading::parse).count();
        assert_eq!((parsed, text.lines().last()), (readings.len(), Some("Test result: SUCCESS")));
    }

    #[test]
    fn a_request_is_understood_and_nothing_else_is_one() {
        assert_eq!(Parameters::requested(&PARAMETERS.request()), Some(Ok(PARAMETERS)));
        for no in ["", "tdf-ask", "tdf-asks test=clocks", "login: tdf-ask test=clocks"] {
            assert_eq!(Parameters::requested(no), None, "{no}");
        }
        let wrong = Parameters::requested("tdf-ask test=clocks span_ns=0");
        assert_eq!(wrong, Some(Err(ProbeError::Parameter("samples"))));
    }

    #[test]
    fn offsets_ascend_to_the_span_and_change_with_the_seed() {
        let offsets = PARAMETERS.offsets();
        assert!(offsets.windows(2).all(|pair| pair[1] - pair[0] >= 400_000_000 / 41));
        assert_eq!(offsets.last(), Some(&PARAMETERS.span_ns));
        assert_ne!(offsets, Parameters { seed: 8, ..PARAMETERS }.offsets());
    }

    #[test]
    fn the_command_line_is_read_among_other_words() {
        let good = "root=/dev/ram quiet test=clocks span_ns=400000000 samples=20 seed=7 x";
        assert_eq!(Parameters::parse(good), Ok(PARAMETERS));
        let changes = Parameters { test: Test::Changes, ..PARAMETERS };
        assert_eq!(Parameters::parse(&good.replace("=clocks", "=changes")), Ok(changes));
        for (from, to, key) in [
            ("test=clocks", "", "test"),
            ("test=clocks", "test=disks", "test"),
            ("test=clocks", "test=watchdog-bite", "test"),
            ("span_ns=400000000", "span_ns=0", "span_ns"),
            ("span_ns=400000000", "span_ns=-4", "span_ns"),
            ("span_ns=400000000", "span_ns=18446744073709551615", "span_ns"),
            ("samples=20", "samples=1", "samples"),
            ("samples=20", "samples=99999", "samples"),
            ("seed=7", "seed=x", "seed"),
        ] {
            let cmdline = good.replace(from, to);
            assert_eq!(Parameters::parse(&cmdline), Err(ProbeError::Parameter(key)), "{to}");
        }
    }
}
