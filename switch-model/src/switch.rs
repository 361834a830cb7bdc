// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several ports: whose turn it is, and how they share one buffer.
//!
//! Two tournaments over the ports answer "who is due next" in log2(ports) comparisons: one for
//! arrivals at the far end, one for departures from the buffer, without which no port's share of
//! the buffer could be told exactly.

use core::hint::select_unpredictable;

use crate::{ConfigError, Event, Frame, Probability, Size, Verdict, scheduled::Egress};

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

/// A tournament over `N` keys.
#[derive(Clone, Debug)]
struct Index<const N: usize> {
    keys: [u64; N],
    nodes: [u16; N],
}

impl<const N: usize> Index<N> {
    /// No port is due.
    const IDLE: u64 = u64::MAX;

    fn new() -> Self {
        let mut index = Self { keys: [Self::IDLE; N], nodes: [0; N] };
        for i in 0..N {
            index.set(i, Self::IDLE - 1);
            index.set(i, Self::IDLE);
        }
        index
    }

    #[inline]
    fn set(&mut self, i: usize, key: u64) {
        if self.keys[i] == key {
            return;
        }
        self.keys[i] = key;
        let (mut winner, mut key) = (i, key);
        let mut node = N + i;
        while node > 1 {
            let rival = self.winner(node ^ 1);
            let other = self.keys[rival];
            let lost = other < key;
            winner = select_unpredictable(lost, rival, winner);
            key = select_unpredictable(lost, other, key);
            node >>= 1;
            self.nodes[node] = winner as u16;
        }
    }

    #[inline]
    fn winner(&self, node: usize) -> usize {
        if node >= N { node - N } else { usize::from(self.nodes[node]) }
    }

    /// The first port and its key.
    #[inline]
    fn first(&self) -> (usize, u64) {
        let i = self.winner(1);
        (i, self.keys[i])
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
            switch.used += u64::from(switch.ports[port].buffered_bytes());
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
        self.account(port, before);
        self.refresh(port);
        answer
    }

    /// Bytes in the shared buffer, as of the last offer.
    pub fn used(&self) -> u64 {
        self.used
    }
}
