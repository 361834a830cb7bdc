// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one of Xen's time paths did, and what theory allows it.
//!
//! A clock is judged by many readings; a path (a timer call with an extreme deadline, a CPUID leaf)
//! is tried once and gives one number, which must lie between two others. The guest that tried it
//! knows the relation and computes both bounds; whoever reads its console only compares.

use core::fmt;

/// First word of a row's line.
const TAG: &str = "tdf-path";

/// One path, tried in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathRow<'a> {
    /// Row of the table of paths: `P8`, `P20` …, `CHANGES`; no white space.
    pub path: &'a str,
    /// What was tried, with `@1` behind it for a vCPU other than the first; no white space.
    pub probe: &'a str,
    /// Least right value.
    pub lo: i64,
    /// What was measured, in ns of virtual time unless `probe` says otherwise.
    pub value: i64,
    /// Greatest right value.
    pub hi: i64,
}

impl fmt::Display for PathRow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, probe, lo, value, hi } = self;
        write!(f, "{TAG} path={path} probe={probe} lo={lo} value={value} hi={hi}")
    }
}

impl<'a> PathRow<'a> {
    /// The row in `line`, `None` if the line is not one.
    ///
    /// The line comes from a guest. Bounds that no value can keep are a row, one that fails.
    pub fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.trim().split(' ');
        if words.next()? != TAG {
            return None;
        }
        let mut field = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=');
        let row = Self {
            path: field("path")?,
            probe: field("probe")?,
            lo: field("lo")?.parse().ok()?,
            value: field("value")?.parse().ok()?,
            hi: field("hi")?.parse().ok()?,
        };
        let named = !row.path.is_empty() && !row.probe.is_empty();
        (words.next().is_none() && named).then_some(row)
    }

    /// Whether the path did what theory demands.
    pub const fn pass(&self) -> bool {
        self.lo <= self.value && self.value <= self.hi
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_line_of_the_protocol() {
        let row = PathRow { path: "P8", probe: "far_future", lo: -1, value: 0, hi: 7 };
        let line = "tdf-path path=P8 probe=far_future lo=-1 value=0 hi=7";
        assert_eq!(row.to_string(), line);
        assert_eq!(PathRow::parse(&format!("{line}\r\n")), Some(row));
    }

    #[test]
    fn anything_else_is_no_row() {
        for bad in [
            "",
            "tdf-path",
            "tdf-reading path=P8 probe=a lo=0 value=0 hi=0",
            "tdf-path path= probe=a lo=0 value=0 hi=0",
            "tdf-path path=P8 probe= lo=0 value=0 hi=0",
            "tdf-path path=P8 probe=a lo=0 value=0",
            "tdf-path path=P8 probe=a lo=0 value=0 hi=0 more=1",
            "tdf-path path=P8 probe=a b lo=0 value=0 hi=0",
            "tdf-path probe=a path=P8 lo=0 value=0 hi=0",
            "tdf-path path=P8 probe=a lo=0 value=x hi=0",
            "tdf-path path=P8 probe=a lo=0 value=9223372036854775808 hi=0",
            "tdf-path path=P8 probe=a  lo=0 value=0 hi=0",
        ] {
            assert_eq!(PathRow::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_row_round_trips_and_passes_only_between_its_bounds(
            path in "[A-Z0-9]{1,8}", probe in "[a-z_@0-9]{1,20}", lo: i64, value: i64, hi: i64
        ) {
            let row = PathRow { path: &path, probe: &probe, lo, value, hi };
            let line = row.to_string();
            prop_assert_eq!(PathRow::parse(&line), Some(row));
            prop_assert_eq!(row.pass(), (lo..=hi).contains(&value));
        }

        #[test]
        fn no_line_panics(tail: String) {
            let _ = PathRow::parse(&tail);
            let _ = PathRow::parse(&format!("tdf-path path={tail}"));
        }
    }
}
