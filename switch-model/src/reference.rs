// SPDX-License-Identifier: MIT OR Apache-2.0
//! A fixed run through every stage, so that any machine can show that it decides as all others do.
//!
//! It needs 12 KiB of stack and neither `std` nor an allocator: a kernel can run it at its start.

use crate::{
    Chance, CodelSpec, Counters, DropReason, Few, Frame, Frames, Framing, Jitter, Loss,
    PolicerSpec, Port, PortSpec, Probability, ProcessorSpec, Rate, RedSpec, Scheduled, Scheduler,
    Size, Slot, Span, TraceHash, stream_seed,
};

/// What [`reference_trace`] gives, everywhere.
pub const REFERENCE_TRACE: u64 = 0xa98f_8053_ed48_62b0;

/// A FIFO port with most stages.
const FIFO: PortSpec = PortSpec {
    rate: Some(Rate::mbit(900)),
    framing: Framing::ETHERNET,
    latency: Span::ns(700),
    queue_bytes: Some(Size::bytes(60_000)),
    policer: Some(PolicerSpec { rate: Rate::mbit(790), burst: Size::bytes(90_000) }),
    red: Some(RedSpec {
        min: Size::bytes(10_000),
        max: Size::bytes(50_000),
        probability: Probability::ratio(10, 100),
        weight: 4,
        ecn: true,
    }),
    delay: Span::us(50),
    jitter: Jitter::Normal { spread: Span::us(20), correlation: Probability::ratio(30, 100) },
    loss: Loss::Bursty { probability: Probability::ratio(1, 100), burst: Frames::new(4) },
    duplicate: Chance::of(Probability::ratio(2, 100)),
    corrupt: Chance::of(Probability::ratio(3, 100)),
    reorder: Chance::of(Probability::ratio(1, 100)),
    ..PortSpec::IDEAL
};

/// Runs 200 000 frames through a FIFO port and a scheduled one; 0 if a stage had nothing to do.
pub fn reference_trace() -> u64 {
    run().unwrap_or(0)
}

fn run() -> Option<u64> {
    let queued = PortSpec {
        codel: Some(CodelSpec { target: Span::us(100), interval: Span::ms(1), ecn: true }),
        scheduler: Scheduler::Drr { quanta: Few::new(&[Size::bytes(1500), Size::bytes(3000)])? },
        processor: Some(ProcessorSpec { service: [Span::us(5); 3], queue: Frames::new(8) }),
        ..FIFO
    };
    let (config, queued) = (FIFO.build().ok()?, queued.build().ok()?);
    let slots = [Slot::EMPTY; 256];
    let mut fifo = Port::new(&config, 1, slots).ok()?;
    let mut scheduled = Scheduled::<_, _, 2>::new(&queued, 2, slots, slots).ok()?;
    let mut hash = TraceHash::default();
    let (mut now, mut state) = (0, 1);
    for tag in 0..200_000 {
        state = stream_seed(state, 3);
        now += state % 16_000;
        let frame = Frame {
            ecn: state >> 20 & 1 == 1,
            class: (state >> 21 & 1) as u8,
            cost: u8::from(state >> 22 & 15 == 0),
            ..Frame::new(tag, 60 + (state >> 32) as u32 % 1455)
        };
        hash.add_verdict(&fifo.offer(now, frame));
        while let Some(delivery) = fifo.pop_due(now) {
            hash.add_delivery(&delivery);
        }
        while let Some(event) = scheduled.pop_due(now) {
            hash.add_event(&event);
        }
        hash.add_verdict(&scheduled.offer(now, frame));
    }
    let busy = |counters: Counters| {
        let happened = [DropReason::Aqm, DropReason::Policed, DropReason::Loss];
        counters.copies > 0
            && counters.marks > 0
            && happened.iter().all(|&reason| counters.dropped(reason) > 0)
            && counters.dropped(DropReason::NoSlot) == 0
    };
    (busy(fifo.counters()) && busy(scheduled.counters())).then_some(hash.value())
}
