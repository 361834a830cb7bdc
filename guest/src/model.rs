// SPDX-License-Identifier: MIT OR Apache-2.0
//! The `model` self-test: in a guest the model of a switch decides what it decides everywhere.
//!
//! The switch of an experiment is as deterministic as its model. A kernel is compiled in its own way,
//! without the operating system's library and with other rules for registers, so it shows that it
//! comes to the same trace, bit for bit.

use core::fmt;

use switch_model::{REFERENCE_TRACE, reference_trace};
use tdf_xen::path::PathRow;

use crate::probe::{Outcome, say};

/// Runs the model's reference trace, and prints its hash and the verdict.
pub fn run(out: &mut dyn fmt::Write) -> Outcome {
    judge(reference_trace(), out)
}

fn judge(trace: u64, out: &mut dyn fmt::Write) -> Outcome {
    // The row's numbers have a sign, which means nothing here.
    let (value, right) = (trace.cast_signed(), REFERENCE_TRACE.cast_signed());
    let row = PathRow { path: "MODEL", probe: "reference_trace", lo: right, value, hi: right };
    say(out, format_args!("{row}"));
    let outcome = if trace == REFERENCE_TRACE { Outcome::Success } else { Outcome::Failure };
    say(out, format_args!("Test result: {outcome}"));
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reference_trace_passes() {
        for (trace, expected) in
            [(reference_trace(), Outcome::Success), (REFERENCE_TRACE ^ 1, Outcome::Failure)]
        {
            let mut said = String::new();
            assert_eq!(judge(trace, &mut said), expected);
            let (row, verdict) = said.split_once('\n').expect("two lines");
            let row = PathRow::parse(row.trim()).expect("a row");
            assert_eq!(row.pass(), expected == Outcome::Success);
            assert_eq!(verdict.trim(), format!("Test result: {expected}"));
        }
    }
}
