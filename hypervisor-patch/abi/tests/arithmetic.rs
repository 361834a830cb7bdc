// SPDX-License-Identifier: MIT OR Apache-2.0
//! The arithmetic that the queue adds to Xen (`common/tdf-math.c`) against exact rationals.
//!
//! Xen has 64-bit words and must not trap; here there are 128 bits. Each function is compared with
//! its definition over all of its operands, and the relations that the rest of the queue relies on
//! are stated as well.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};

use common::{Numbers, Program, folder, put, put_math};
use proptest::prelude::*;
use tdf_abi::{TDF_MAX, Tdf};

type Arith = Program<8, 4>;

/// Number of an operation in `c/arith.c`.
#[derive(Clone, Copy)]
enum Op {
    ToVirt,
    ToReal,
    Next,
    Scale,
    Ratio,
    Valid,
    Reduce,
    Parse,
    Start,
    Change,
    Read,
}

fn program() -> Arith {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let folder = folder(&format!("arithmetic-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
    put_math(&folder);
    put(&folder, "arith.c", include_str!("c/arith.c"));
    Arith::build(&folder, "arith", &[], &["arith.c", "tdf-math.c"])
}

thread_local! {
    /// Each test runs in a thread of its own.
    static ARITH: RefCell<Arith> = RefCell::new(program());
}

/// V(R) = virt0 + (R − real0)·den/num.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    real0: i64,
    virt0: i64,
    num: u32,
    den: u32,
}

fn saturate(exact: i128) -> i64 {
    exact.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

impl Segment {
    fn record(self, op: Op, operands: [i64; 3]) -> [i64; 8] {
        let [a, b, c] = operands;
        [op as i64, self.real0, self.virt0, self.num.into(), self.den.into(), a, b, c]
    }

    fn call(self, op: Op, operands: [i64; 3]) -> [i64; 4] {
        ARITH.with_borrow_mut(|arith| arith.call(self.record(op, operands)))
    }

    fn to_virt(self, real: i64) -> i64 {
        self.call(Op::ToVirt, [real, 0, 0])[0]
    }

    fn to_real(self, virt: i64) -> i64 {
        self.call(Op::ToReal, [virt, 0, 0])[0]
    }

    fn scale(self, mul: u32, shift: i8) -> (u32, i8) {
        let [mul, shift, ..] = self.call(Op::Scale, [mul.into(), shift.into(), 0]);
        (mul.try_into().unwrap(), shift.try_into().unwrap())
    }

    fn exact_virt(self, real: i64) -> i128 {
        let delta = i128::from(real) - i128::from(self.real0);
        i128::from(self.virt0) + (delta * i128::from(self.den)).div_euclid(self.num.into())
    }

    fn exact_real(self, virt: i64) -> i128 {
        let delta = i128::from(virt) - i128::from(self.virt0);
        i128::from(self.real0) - (-delta * i128::from(self.num)).div_euclid(self.den.into())
    }
}

/// A time: any, but the ends and the neighbourhood of 0 more often than chance has it.
fn time() -> impl Strategy<Value = i64> {
    prop_oneof![
        any::<i64>(),
        -2_000_000_000..2_000_000_000i64,
        0..(1i64 << 55),
        prop_oneof![
            Just(i64::MIN),
            Just(i64::MIN + 1),
            Just(-1),
            Just(i64::MAX - 16),
            Just(i64::MAX)
        ],
    ]
}

/// A factor that Xen accepts: whole, inverse, or a fraction with up to 32 bits in each number.
fn factor() -> impl Strategy<Value = (u32, u32)> {
    let accepted = |num: u32, den: u32| Tdf::new(num, den).is_ok();
    prop_oneof![
        (1..=TDF_MAX).prop_map(|n| (n, 1)),
        (1..=TDF_MAX).prop_map(|n| (1, n)),
        (1..=1000u32, 1..=1000u32),
        (any::<u32>(), any::<u32>()).prop_filter("in range", move |&(n, d)| accepted(n, d)),
        prop_oneof![
            Just((u32::MAX, u32::MAX - 2)),
            Just((u32::MAX, 4294968)),
            Just((4294968, u32::MAX))
        ],
    ]
}

fn segment() -> impl Strategy<Value = Segment> {
    (time(), time(), factor()).prop_map(|(real0, virt0, (num, den))| Segment {
        real0,
        virt0,
        num,
        den,
    })
}

/// Segments, times and results of a host that runs for less than 36 years: nothing saturates.
fn ordinary() -> impl Strategy<Value = (Segment, i64)> {
    (0..1i64 << 50, 0..1i64 << 50, factor(), 0..1i64 << 50)
        .prop_map(|(real0, virt0, (num, den), time)| (Segment { real0, virt0, num, den }, time))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(8_000) })]

    #[test]
    fn virtual_time_is_the_exact_one_rounded_down(seg in segment(), real in time()) {
        prop_assert_eq!(seg.to_virt(real), saturate(seg.exact_virt(real)));
    }

    #[test]
    fn real_time_is_the_exact_one_rounded_up(seg in segment(), virt in time()) {
        prop_assert_eq!(seg.to_real(virt), saturate(seg.exact_real(virt)));
    }

    #[test]
    fn a_timer_never_fires_before_the_clock_shows_its_deadline((seg, virt) in ordinary()) {
        prop_assert!(seg.to_virt(seg.to_real(virt)) >= virt);
        // … and one ns earlier would be too early, unless it is the same virtual ns.
        prop_assert!(seg.to_virt(seg.to_real(virt) - 1) < virt);
    }

    #[test]
    fn a_time_that_was_shown_has_passed((seg, real) in ordinary()) {
        let back = i128::from(seg.to_real(seg.to_virt(real)));
        let (num, den) = (i128::from(seg.num), i128::from(seg.den));
        prop_assert!(back <= real.into());
        prop_assert!((i128::from(real) - back) * den < num, "more than TDF ns are lost");
    }

    #[test]
    fn a_change_of_factor_goes_on_from_the_same_point(
        seg in segment(), real in time(), (num, den) in factor()
    ) {
        let [real0, virt0, n, d] = seg.call(Op::Next, [real, num.into(), den.into()]);
        prop_assert_eq!((n, d), (num.into(), den.into()));
        // A CPU whose clock is behind the one of the last change does not take time back.
        prop_assert_eq!(real0, real.max(seg.real0));
        prop_assert_eq!(virt0, saturate(seg.exact_virt(real0)));
        prop_assert!(virt0 >= seg.virt0);
    }

    #[test]
    fn a_scale_is_the_exact_one_rounded_down_to_32_bits(
        (num, den) in factor(),
        mul in prop_oneof![0x8000_0000..=u32::MAX, 1..=u32::MAX, Just(1), Just(0x8000_0000)],
        shift in -30..=30i8,
    ) {
        let seg = Segment { real0: 0, virt0: 0, num, den };
        let (new_mul, new_shift) = seg.scale(mul, shift);
        prop_assert!(new_mul >= 0x8000_0000, "{new_mul:#x} has less than 32 bits");
        // new_mul·2^new_shift <= mul·2^shift·den/num < (new_mul + 1)·2^new_shift
        let (num, den) = (u128::from(num), u128::from(den));
        let lost = i32::from(shift) - i32::from(new_shift);
        let exact = (u128::from(mul) * den) << lost.max(0);
        let unit = num << (-lost).max(0);
        let scaled = u128::from(new_mul) * unit;
        prop_assert!(scaled <= exact, "faster than exact");
        prop_assert!(exact < scaled + unit, "a bit was lost");
        prop_assert!(((exact - scaled) as f64 / exact as f64) < 4.7e-10);
    }

    #[test]
    fn a_tsc_ratio_is_the_exact_one_rounded_down(
        (num, den) in factor(),
        // Any; one that hardware has, with 32 or 48 bits behind the point; none.
        ratio in prop_oneof![any::<u64>(), 1u64 << 30..1 << 34, 1u64 << 46..1 << 50, Just(0)],
    ) {
        let seg = Segment { real0: 0, virt0: 0, num, den };
        let exact = u128::from(ratio) * u128::from(den) / u128::from(num);
        let [scaled, ..] = seg.call(Op::Ratio, [ratio as i64, 0, 0]);
        prop_assert_eq!(scaled as u64, u64::try_from(exact).unwrap_or(u64::MAX));
    }

    #[test]
    fn factors_are_accepted_reduced_and_read_as_the_crate_does(
        num in any::<u32>(), den in any::<u32>(), (good_num, good_den) in factor(),
        text in prop_oneof![
            "[0-9]{1,10}", "[0-9]{1,10}/[0-9]{1,10}", "[0-9]{1,9}\\.[0-9]{1,7}", "[0-9./ +-ex]{0,12}",
            "[1-9]{1,3}\\.[0-9]{1,6}", "[1-9][0-9]{0,5}/[1-9][0-9]{0,5}",
        ],
    ) {
        let seg = Segment { real0: 0, virt0: 0, num: 1, den: 1 };
        for (num, den) in [(num, den), (num, 0), (0, den), (good_num, good_den)] {
            let [valid, ..] = seg.call(Op::Valid, [num.into(), den.into(), 0]);
            prop_assert_eq!(valid != 0, Tdf::new(num, den).is_ok());
        }
        let good = Tdf::new(good_num, good_den).unwrap();
        let [num, den, ..] = seg.call(Op::Reduce, [good_num.into(), good_den.into(), 0]);
        prop_assert_eq!((num, den), (good.num().into(), good.den().into()));
        prop_assert_eq!(parse(&text), text.parse().ok(), "{:?}", text);
        prop_assert_eq!(parse(&good.to_string()), good.to_string().parse().ok());
    }
}

/// What Xen's command line makes of a text.
fn parse(text: &str) -> Option<Tdf> {
    let mut bytes = [0; 56];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    let mut record = [Op::Parse as i64; 8];
    for (number, chunk) in record[1..].iter_mut().zip(bytes.chunks_exact(8)) {
        *number = i64::from_ne_bytes(chunk.try_into().unwrap());
    }
    let [ok, num, den, _] = ARITH.with_borrow_mut(|arith| arith.call(record));
    (ok != 0).then(|| {
        let tdf = Tdf::new(num as u32, den as u32).unwrap();
        assert_eq!((num, den), (tdf.num().into(), tdf.den().into()), "{text:?} is not reduced");
        tdf
    })
}

#[test]
fn written_factors_are_read_as_the_crate_does() {
    for text in [
        "10",
        "2.5",
        "5/2",
        "10/4",
        "1/1000",
        "1000",
        "0.001",
        "999999999/999999999",
        "1.000001",
        "",
        "-3",
        "+3",
        "abc",
        "1e9",
        "2.",
        ".5",
        "1/",
        "/1",
        "1/2/3",
        " 1",
        "1 ",
        "0",
        "1/0",
        "0/1",
        "5000",
        "1000.1",
        "1/1001",
        "9999.999999",
        "1.0000001",
        "1000000000/1000000000",
        "2.5/1",
        "999999999.999999",
        "4294.967296",
    ] {
        assert_eq!(parse(text), text.parse().ok(), "{text:?}");
    }
}

/// No combination of the ends of all ranges traps, and each saturates to the exact value's side.
#[test]
fn extreme_operands_saturate() {
    let times = [
        i64::MIN,
        i64::MIN + 1,
        -(1 << 62),
        -1_000_000_007,
        -1,
        0,
        1,
        1_000_000_007,
        1 << 50,
        (1 << 50) + 1,
        1 << 62,
        i64::MAX - 16,
        i64::MAX - 1,
        i64::MAX,
    ];
    let numbers = [1, 2, 3, 999, 1000, 0x7fff_ffff, 0x8000_0000, 0xffff_fffb, u32::MAX];
    for num in numbers {
        for den in numbers {
            // Also factors that Xen would not accept: a trap must not hang on that check alone.
            for real0 in times {
                for virt0 in [i64::MIN, -1, 0, 1 << 40, i64::MAX] {
                    let seg = Segment { real0, virt0, num, den };
                    for time in times {
                        assert_eq!(
                            seg.to_virt(time),
                            saturate(seg.exact_virt(time)),
                            "{seg:?} {time}"
                        );
                        assert_eq!(
                            seg.to_real(time),
                            saturate(seg.exact_real(time)),
                            "{seg:?} {time}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_scale_of_none_is_left_alone_and_factor_1_changes_nothing() {
    for (num, den) in [(1, 1), (1000, 1), (1, 1000), (5, 2)] {
        let seg = Segment { real0: 0, virt0: 0, num, den };
        assert_eq!(seg.scale(0, 7), (0, 7), "TDF {num}/{den}");
    }
    let one = Segment { real0: 0, virt0: 0, num: 1, den: 1 };
    for mul in [0x8000_0000, 0xde0b_6b3a, u32::MAX] {
        assert_eq!(one.scale(mul, -1), (mul, -1));
    }
}

/// A million changes of factor at random times: V equals the exact map, never goes back, and loses
/// less than 1 ns a change against the sum of all segments.
#[test]
fn a_million_changes_of_factor_neither_jump_nor_drift() {
    const CHANGES: usize = 1_000_000;
    /// Parts of a nanosecond in which the exact sum is kept.
    const PARTS: i128 = 1 << 40;

    let mut numbers = Numbers::new(1);
    let mut real = 5_000_000_000i64;
    let mut seg = Segment { real0: real, virt0: real, num: 1, den: 1 };
    let (start, mut sum) = (seg, 0i128);
    let mut records = vec![seg.record(Op::Start, [0; 3])];
    let mut expected = vec![[0; 4]];
    let mut shown = seg.virt0;

    while records.len() < 2 * CHANGES {
        real += numbers.long(30) as i64;
        let between = saturate(seg.exact_virt(real));
        assert!(between >= shown, "the model itself goes back");
        records.push(seg.record(Op::Read, [real, 0, 0]));
        expected.push([between, 0, 0, 0]);

        let step = numbers.long(30) as i64;
        sum +=
            i128::from(real + step - seg.real0) * i128::from(seg.den) * PARTS / i128::from(seg.num);
        real += step;
        let (num, den) = match numbers.below(3) {
            0 => (1 + numbers.below(1000) as u32, 1),
            1 => (1, 1 + numbers.below(1000) as u32),
            _ => (1 + numbers.below(1000) as u32, 1 + numbers.below(1000) as u32),
        };
        let virt0 = saturate(seg.exact_virt(real));
        shown = virt0;
        records.push(seg.record(Op::Change, [real, num.into(), den.into()]));
        expected.push([virt0, virt0, real, virt0]);
        seg = Segment { real0: real, virt0, num, den };
    }

    let answers = program().calls(&records);
    let mut last = start.virt0;
    for ((answer, expected), record) in answers[1..].iter().zip(&expected[1..]).zip(&records[1..]) {
        assert_eq!(answer, expected, "{record:?}");
        assert!(answer[0] >= last, "V steps back at {record:?}");
        last = answer[0];
    }
    let drift = sum - i128::from(last - start.virt0) * PARTS;
    assert!(drift >= -PARTS, "V is ahead by {drift} parts");
    assert!(drift < CHANGES as i128 * PARTS, "V is behind by more than 1 ns a change");
}
