// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several ports: whose turn it is, and how they share one buffer.
//!
//! Two lists of the ports, kept in order, answer "who is due next" at little cost: one for
//! arrivals at the far end, one for departures from the buffer, without which no port's share of
//! the buffer could be told exactly.

use crate::{
    ConfigError, Event, Frame, Probability, Size, Verdict, frame::LAST_ARRIVAL, scheduled::Egress,
};

/// A buffer that all ports draw from, with a dynamic threshold: no port may hold more than `alpha`
/// times what is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct SharedBuffer {
    /// All of it.
    pub size: Size,
    /// Numerator of alpha.
    pub alpha_num: u32,
    /// Denominator of alpha.
    pub alpha_den: u32,
}

impl SharedBuffer {
    /// A buffer of `size` with alpha 1.
    pub const fn new(size: Size) -> Self {
        Self { size, alpha_num: 1, alpha_den: 1 }
    }

    /// What one port may hold once `used` bytes of the buffer are.
    fn share(&self, used: u64) -> u64 {
        let free = self.size.as_bytes().saturating_sub(used);
        let share =
            u128::from(free) * u128::from(self.alpha_num) / u128::from(self.alpha_den.max(1));
        u64::try_from(share).unwrap_or(u64::MAX)
    }

    /// How full a single greedy port can make it: alpha / (1 + alpha).
    pub fn one_port(&self) -> Probability {
        let (num, den) = (u64::from(self.alpha_num), u64::from(self.alpha_den));
        Probability::ratio(num, num + den)
    }
}

/// The ports that have something to do, in the order of their keys, and by number where these agree.
///
/// They lie in a window of a list that is twice as long. Most changes are at its ends: the first port
/// is served and goes behind the last. Another one is found by halves, and the shorter side of the
/// window, two bytes a port, makes room.
#[derive(Clone, Debug)]
struct Index<const N: usize> {
    keys: [u64; N],
    order: [[u16; N]; 2],
    head: u16,
    tail: u16,
}

impl<const N: usize> Index<N> {
    /// No port is due.
    const IDLE: u64 = u64::MAX;

    fn new() -> Self {
        Self { keys: [Self::IDLE; N], order: [[0; N]; 2], head: 0, tail: 0 }
    }

    #[inline]
    fn set(&mut self, port: usize, key: u64) {
        let old = self.keys[port];
        if old == key {
            return;
        }
        if old != Self::IDLE {
            if usize::from(self.order.as_flattened()[usize::from(self.head)]) == port {
                self.head += 1;
            } else {
                self.take_out(port);
            }
            if self.head == self.tail {
                (self.head, self.tail) = (0, 0);
            }
        }
        self.keys[port] = key;
        if key == Self::IDLE {
            return;
        }
        if usize::from(self.tail) == 2 * N {
            self.move_to_front();
        }
        let (head, tail) = (usize::from(self.head), usize::from(self.tail));
        let order = self.order.as_flattened_mut();
        let last = |&last: &u16| (self.keys[usize::from(last)], usize::from(last));
        if order[head..tail].last().is_none_or(|other| last(other) < (key, port)) {
            order[tail] = port as u16;
            self.tail += 1;
        } else {
            self.put_in(port);
        }
    }

    #[inline(never)]
    fn move_to_front(&mut self) {
        self.order.as_flattened_mut().copy_within(usize::from(self.head).., 0);
        (self.head, self.tail) = (0, self.tail - self.head);
    }

    /// How many ports of the window come before this one, which has the same key still or already.
    fn before(&self, port: usize) -> usize {
        let window = &self.order.as_flattened()[usize::from(self.head)..usize::from(self.tail)];
        let place = |port: usize| (self.keys[port], port);
        window.partition_point(|&other| place(usize::from(other)) < place(port))
    }

    #[inline(never)]
    fn take_out(&mut self, port: usize) {
        let (head, tail) = (usize::from(self.head), usize::from(self.tail));
        let at = head + self.before(port);
        let order = self.order.as_flattened_mut();
        if at - head < tail - at {
            order.copy_within(head..at, head + 1);
            self.head += 1;
        } else {
            order.copy_within(at + 1..tail, at);
            self.tail -= 1;
        }
    }

    #[inline(never)]
    fn put_in(&mut self, port: usize) {
        let (head, tail) = (usize::from(self.head), usize::from(self.tail));
        let at = head + self.before(port);
        let order = self.order.as_flattened_mut();
        let at = if head > 0 && at - head < tail - at {
            order.copy_within(head..at, head - 1);
            self.head -= 1;
            at - 1
        } else {
            order.copy_within(at..tail, at + 1);
            self.tail += 1;
            at
        };
        order[at] = port as u16;
    }

    /// The first port and its key.
    #[inline]
    fn first(&self) -> (usize, u64) {
        // In an empty window it is a port that was, and has no key any more.
        let port = usize::from(self.order.as_flattened()[usize::from(self.head)]);
        (port, self.keys[port])
    }
}

/// `N` ports of one kind.
#[derive(Clone, Debug)]
pub struct Switch<P, const N: usize> {
    ports: [P; N],
    deadlines: Index<N>,
    departures: Index<N>,
    shared: Option<SharedBuffer>,
    used: u64,
}

impl<P: Egress, const N: usize> Switch<P, N> {
    /// A switch with these ports, which share `buffer` or have each their own.
    ///
    /// Ports that share a buffer should have the same latency: the buffer is entered after it.
    pub fn new(ports: [P; N], buffer: Option<SharedBuffer>) -> Result<Self, ConfigError> {
        if N == 0 || N > 4096 {
            return Err(ConfigError::TooLarge("the number of ports"));
        }
        if buffer.is_some_and(|b| b.alpha_den == 0 || b.alpha_num == 0) {
            return Err(ConfigError::Zero("alpha"));
        }
        let (deadlines, departures) = (Index::new(), Index::new());
        let mut switch = Self { ports, deadlines, departures, shared: buffer, used: 0 };
        for port in 0..N {
            if buffer.is_some() {
                switch.used += u64::from(switch.ports[port].buffered_bytes());
            }
            switch.refresh(port);
        }
        Ok(switch)
    }

    /// Offers a frame to `port` at `now`; see [`Port::offer`](crate::Port::offer).
    ///
    /// # Panics
    ///
    /// If there is no such port.
    #[inline]
    pub fn offer(&mut self, now: u64, port: usize, frame: Frame) -> Verdict {
        let Some(shared) = self.shared else {
            let verdict = self.ports[port].offer_within(now, frame, u64::MAX);
            self.refresh(port);
            return verdict;
        };
        self.settle(now);
        let share = shared.share(self.used.saturating_add(u64::from(frame.len)));
        let before = self.ports[port].buffered_bytes();
        let verdict = self.ports[port].offer_within(now, frame, share);
        self.account(port, before);
        self.refresh(port);
        verdict
    }

    /// Brings the shared buffer up to date.
    fn settle(&mut self, now: u64) {
        let now = now.min(LAST_ARRIVAL);
        loop {
            let (port, at) = self.departures.first();
            if at > now {
                return;
            }
            let before = self.ports[port].buffered_bytes();
            self.ports[port].settle(now);
            self.account(port, before);
            let next = self.ports[port].next_departure().unwrap_or(Index::<N>::IDLE);
            self.departures.set(port, next.max(now.saturating_add(1)));
            self.deadlines.set(port, self.ports[port].next_deadline().unwrap_or(Index::<N>::IDLE));
        }
    }

    fn account(&mut self, port: usize, before: u32) {
        let after = self.ports[port].buffered_bytes();
        self.used = self.used + u64::from(after) - u64::from(before);
    }

    #[inline]
    fn refresh(&mut self, port: usize) {
        let deadline = self.ports[port].next_deadline().unwrap_or(Index::<N>::IDLE);
        self.deadlines.set(port, deadline);
        if self.shared.is_some() {
            let departure = self.ports[port].next_departure().unwrap_or(Index::<N>::IDLE);
            self.departures.set(port, departure);
        }
    }

    /// The next thing that has happened by `now` at any port, and at which.
    #[inline]
    pub fn pop_due(&mut self, now: u64) -> Option<(usize, Event)> {
        // Beyond that there are only ports which are never due.
        let now = now.min(LAST_ARRIVAL);
        loop {
            let (port, at) = self.deadlines.first();
            if at > now {
                return None;
            }
            let event = match self.shared {
                None => self.ports[port].pop_due(at),
                Some(_) => {
                    let before = self.ports[port].buffered_bytes();
                    let event = self.ports[port].pop_due(at);
                    self.account(port, before);
                    event
                }
            };
            self.refresh(port);
            if let Some(event) = event {
                return Some((port, event));
            }
        }
    }

    /// When to ask [`pop_due`](Self::pop_due) next.
    #[inline]
    pub fn next_deadline(&self) -> Option<u64> {
        Some(self.deadlines.first().1).filter(|&at| at != Index::<N>::IDLE)
    }

    /// The ports.
    pub fn ports(&self) -> &[P; N] {
        &self.ports
    }

    /// One port, to change its configuration; what it holds is taken up again afterwards.
    pub fn with_port<T>(&mut self, port: usize, change: impl FnOnce(&mut P) -> T) -> T {
        let before = self.ports[port].buffered_bytes();
        let answer = change(&mut self.ports[port]);
        if self.shared.is_some() {
            self.account(port, before);
        }
        self.refresh(port);
        answer
    }

    /// Bytes in the shared buffer, as of the last offer.
    pub fn used(&self) -> u64 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any change of any key, against a search of all of them.
    fn the_least_key_wins<const N: usize>() {
        let mut index = Index::<N>::new();
        for n in 0..30_000u64 {
            let draw = crate::rng::mix(n + N as u64);
            // The winner, too, and often: it is what a switch changes most.
            let port = if draw & 1 == 0 { index.first().0 } else { (draw >> 8) as usize % N };
            let key = match draw >> 1 & 3 {
                0 => Index::<N>::IDLE,
                _ => draw >> 40 & 0xFF,
            };
            index.set(port, key);
            let least = (0..N).min_by_key(|&port| index.keys[port]).unwrap();
            let (port, key) = index.first();
            assert_eq!(key, index.keys[least], "{n}");
            assert!(port == least || key == Index::<N>::IDLE, "{n}");
        }
    }

    #[test]
    fn the_least_of_any_number_of_keys_wins() {
        the_least_key_wins::<1>();
        the_least_key_wins::<2>();
        the_least_key_wins::<3>();
        the_least_key_wins::<4>();
        the_least_key_wins::<5>();
        the_least_key_wins::<17>();
        the_least_key_wins::<64>();
        the_least_key_wins::<70>();
        the_least_key_wins::<257>();
    }

    /// A port that is never due is not due at the end of time either.
    #[test]
    fn the_end_of_time_comes() {
        let config = crate::PortSpec::IDEAL.build().unwrap();
        for buffer in [None, Some(SharedBuffer::new(Size::bytes(1000)))] {
            let port = |i: usize| crate::Port::new(&config, i as u64, [crate::Slot::EMPTY; 2]);
            let ports = core::array::from_fn::<_, 3, _>(|i| port(i).unwrap());
            let mut switch = Switch::new(ports, buffer).unwrap();
            assert!(matches!(switch.offer(u64::MAX, 1, Frame::new(1, 100)), Verdict::Deliver(_)));
            assert!(switch.pop_due(u64::MAX).is_some());
            assert_eq!(switch.pop_due(u64::MAX), None);
        }
    }
}
