// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several ports: whose turn it is, and how they share one buffer.
//!
//! Two tournaments over the ports answer "who is due next" at little cost: one for
//! arrivals at the far end, one for departures from the buffer, without which no port's share of
//! the buffer could be told exactly.

use core::hint::select_unpredictable;

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

/// A tournament over `N` keys, four to a match.
///
/// The matches of the first round lie in the first quarter of `winners`, then those of the second,
/// and so on; the last is the final. A key that changes is followed upwards only as far as it decides
/// a match: a port that has something to do, and is not the next, costs one comparison.
#[derive(Clone, Debug)]
struct Index<const N: usize> {
    keys: [u64; N],
    winners: [u16; N],
}

impl<const N: usize> Index<N> {
    /// No port is due.
    const IDLE: u64 = u64::MAX;

    /// Where the final is.
    const FINAL: usize = {
        let (mut matches, mut offset) = (N.div_ceil(4), 0);
        while matches > 1 {
            offset += matches;
            matches = matches.div_ceil(4);
        }
        offset
    };

    fn new() -> Self {
        let mut index = Self { keys: [Self::IDLE; N], winners: [0; N] };
        let (mut contestants, mut offset, mut rounds) = (N, 0, 1);
        while contestants > 1 {
            let matches = contestants.div_ceil(4);
            for i in 0..matches {
                index.winners[offset + i] = (i << (2 * rounds)) as u16;
            }
            (contestants, offset, rounds) = (matches, offset + matches, rounds + 1);
        }
        index
    }

    #[inline]
    fn set(&mut self, port: usize, key: u64) {
        let old = core::mem::replace(&mut self.keys[port], key);
        if old == key {
            return;
        }
        // Who comes up from below, and among whom there: in the first round, the ports themselves.
        let (mut winner, mut key) = (port, key);
        let (mut contestant, mut below) = (port, None);
        let (mut matches, mut offset, mut shift) = (N.div_ceil(4), 0, 0);
        loop {
            let game = contestant / 4;
            let reigning = usize::from(self.winners[offset + game]);
            if reigning >> shift != contestant {
                if self.keys[reigning] <= key {
                    return;
                }
            } else if key > old {
                (winner, key) = match below {
                    None => self.play_ports(game),
                    Some(below) => self.play(below, game, offset),
                };
            }
            self.winners[offset + game] = winner as u16;
            if matches <= 1 {
                return;
            }
            (contestant, below, shift) = (game, Some(offset), shift + 2);
            offset += matches;
            matches = matches.div_ceil(4);
        }
    }

    /// A match of the first round.
    #[inline]
    fn play_ports(&self, game: usize) -> (usize, u64) {
        let first = game * 4;
        match self.keys.get(first..first + 4) {
            Some(&[a, b, c, d]) => earlier(
                earlier((first, a), (first + 1, b)),
                earlier((first + 2, c), (first + 3, d)),
            ),
            _ => (first..N).map(|i| (i, self.keys[i])).reduce(earlier).unwrap_or((0, Self::IDLE)),
        }
    }

    /// A match among the winners of the round that lies in `below..end`.
    #[inline]
    fn play(&self, below: usize, game: usize, end: usize) -> (usize, u64) {
        let first = below + game * 4;
        let winner = |&port: &u16| (usize::from(port), self.keys[usize::from(port)]);
        match &self.winners[first..end.min(first + 4)] {
            [a, b, c, d] => earlier(earlier(winner(a), winner(b)), earlier(winner(c), winner(d))),
            few => few.iter().map(winner).reduce(earlier).unwrap_or((0, Self::IDLE)),
        }
    }

    /// The first port and its key.
    #[inline]
    fn first(&self) -> (usize, u64) {
        let port = usize::from(self.winners[Self::FINAL]);
        (port, self.keys[port])
    }
}

/// Which one it is, is a matter of chance: select, do not branch.
#[inline]
fn earlier(a: (usize, u64), b: (usize, u64)) -> (usize, u64) {
    let wins = b.1 < a.1;
    (select_unpredictable(wins, b.0, a.0), select_unpredictable(wins, b.1, a.1))
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
        self.account(port, before);
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
            let least = index.keys.iter().copied().min().unwrap();
            let (port, key) = index.first();
            assert_eq!((key, index.keys[port]), (least, least), "{n}");
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
