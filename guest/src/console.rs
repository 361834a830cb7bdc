// SPDX-License-Identifier: MIT OR Apache-2.0
//! The guest's end of the PV console, with patience for the other one.
//!
//! dom0's console daemon reads the ring in its own time, and may be gone for good. Whoever prints
//! waits for room, asleep, as long as the daemon reads anything at all now and then.

use tdf_xen::abi::Port;
use tdf_xen::hypercall::{Hypercall, Xen};
use tdf_xen::ring::{Producer, Ring};

use crate::machine::{Cpu, Machine};

/// Virtual ns that the console daemon may take to read anything before it counts as gone.
pub const PATIENCE_NS: i64 = 10_000_000_000;

/// Nobody sane is at the other end: it has read nothing for too long, its index is impossible, or
/// Xen refuses to notify it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// A console ring, and the event channel that goes with it.
#[derive(Debug)]
pub struct RingConsole {
    out: Producer,
    port: Port,
}

impl RingConsole {
    /// The console on `ring`, whose daemon listens at `port`.
    pub fn new(ring: Ring, port: Port) -> Self {
        Self { out: Producer::new(ring), port }
    }

    /// Prints all of `text`.
    ///
    /// # Errors
    /// [`Gone`]; some of the text may have been printed.
    pub fn write<X: Hypercall + Cpu>(
        &mut self,
        machine: &Machine<'_, X>,
        mut text: &[u8],
    ) -> Result<(), Gone> {
        loop {
            let count = self.out.write(text).map_err(|_| Gone)?;
            machine.xen.notify(self.port).map_err(|_| Gone)?;
            text = &text[count..];
            if text.is_empty() {
                return Ok(());
            }
            let full = self.out.pending().map_err(|_| Gone)?;
            self.drain(machine, full.saturating_sub(1))?;
        }
    }

    /// Waits until everything has been read.
    ///
    /// # Errors
    /// [`Gone`].
    pub fn flush<X: Hypercall + Cpu>(&self, machine: &Machine<'_, X>) -> Result<(), Gone> {
        self.drain(machine, 0)
    }

    /// Waits until at most `most` bytes are left.
    fn drain<X: Hypercall + Cpu>(&self, machine: &Machine<'_, X>, most: u32) -> Result<(), Gone> {
        let mut best = u32::MAX;
        let mut deadline = 0;
        loop {
            let pending = self.out.pending().map_err(|_| Gone)?;
            if pending <= most {
                return Ok(());
            }
            let now = machine.system_time_ns();
            if pending < best {
                best = pending;
                deadline = now.saturating_add(PATIENCE_NS);
            } else if now >= deadline {
                return Err(Gone);
            }
            machine.wait_for(self.port, deadline).map_err(|_| Gone)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Around;
    use crate::fake::first_machine;
    use std::cell::{Cell, RefCell};
    use tdf_xen::abi::{EVTCHNOP_SEND, NR_EVENT_CHANNEL_OP, NR_SCHED_OP, PAGE_SIZE, Vcpu, xencons};
    use tdf_xen::fake::{Config, FakeXen};
    use tdf_xen::ring::Consumer;

    #[repr(align(4096))]
    struct Page([u8; PAGE_SIZE]);

    /// A Xen with a console daemon, which reads so much at a time when the guest sleeps.
    struct WithDaemon {
        xen: FakeXen,
        daemon: RefCell<Consumer>,
        appetite: usize,
        eaten: RefCell<Vec<u8>>,
        notified: Cell<u32>,
    }

    impl Hypercall for WithDaemon {
        unsafe fn call(&self, number: u32, args: [usize; 5]) -> isize {
            if (number, args[0] as u32) == (NR_EVENT_CHANNEL_OP, EVTCHNOP_SEND) {
                self.notified.set(self.notified.get() + 1);
                return 0;
            }
            if number == NR_SCHED_OP {
                let mut buffer = vec![0; self.appetite];
                let count = self.daemon.borrow_mut().read(&mut buffer).unwrap();
                self.eaten.borrow_mut().extend(&buffer[..count]);
            }
            // SAFETY: the caller's promise.
            unsafe { self.xen.call(number, args) }
        }
    }

    impl Around for WithDaemon {
        fn inner(&self) -> &FakeXen {
            &self.xen
        }
    }

    /// Prints `text` to a daemon of that appetite, and flushes; what it got, and the ns it took.
    fn print(appetite: usize, text: &[u8]) -> (Result<(), Gone>, Vec<u8>, i64) {
        let mut page = Box::new(Page([0; PAGE_SIZE]));
        // SAFETY: the page outlives both ends.
        let ring = unsafe { Ring::console_out(page.0.as_mut_ptr()) };
        let xen = WithDaemon {
            xen: FakeXen::new(Config::default()),
            daemon: RefCell::new(Consumer::new(ring)),
            appetite,
            eaten: RefCell::default(),
            notified: Cell::default(),
        };
        let (time, wall, events) = (xen.xen.time(Vcpu(0)), xen.xen.wall(), xen.xen.events());
        let machine = Machine::new(&xen, Vcpu(0), time, wall, events).unwrap();
        xen.stop_periodic_timer(Vcpu(0)).unwrap();
        let start = machine.system_time_ns();
        let mut console = RingConsole::new(ring, Port(2));
        let result = console.write(&machine, text).and_then(|()| console.flush(&machine));
        let took = machine.system_time_ns() - start;
        assert!(xen.notified.get() > 0);
        (result, xen.eaten.take(), took)
    }

    #[test]
    fn a_slow_daemon_gets_every_byte_in_order() {
        let text: Vec<u8> = (0..10_000u32).map(|n| (n % 251) as u8).collect();
        for appetite in [100, 2_000, 100_000] {
            let (result, eaten, _) = print(appetite, &text);
            assert_eq!((result, eaten == text), (Ok(()), true), "{appetite}");
        }
    }

    #[test]
    fn a_daemon_that_reads_nothing_is_given_up_once() {
        // One that does not even fill the ring is noticed by the flush.
        for length in [100, xencons::OUT_SIZE + 1] {
            let (result, eaten, took) = print(0, &vec![b'x'; length]);
            assert_eq!((result, eaten.len()), (Err(Gone), 0));
            assert!((PATIENCE_NS..PATIENCE_NS + 1_000_000).contains(&took), "{took}");
        }
    }

    #[test]
    fn an_insane_index_costs_no_patience() {
        let mut page = Box::new(Page([0; PAGE_SIZE]));
        // SAFETY: the page outlives the ring.
        let ring = unsafe { Ring::console_out(page.0.as_mut_ptr()) };
        let xen = FakeXen::new(Config::default());
        let machine = first_machine(&xen);
        let mut console = RingConsole::new(ring, Port(2));
        page.0[xencons::OUT_CONS] = 7;
        let start = machine.system_time_ns();
        assert_eq!(console.write(&machine, b"x"), Err(Gone));
        assert!(machine.system_time_ns() - start < 1_000_000);
    }
}
