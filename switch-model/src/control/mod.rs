// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a switch's control plane does to time: how long its operations take, and when they act.
//!
//! Servers work off operations one after the other; a new entry costs more the more entries of the
//! memory must move; the data plane follows behind; and a barrier's answer may or may not wait for
//! it. Everything is decided when the operation comes.

mod spec;
mod table;

use core::ops::Deref;

pub use spec::{
    Barrier, ControlSpec, LagSpec, MAX_SERVERS, Moves, OcamlOpenflow, OperationSpec, PacketInLimit,
};
pub use table::Flow;

use crate::{ConfigError, MAX_TIME, Span, rng::Draws, rng::Purpose, sample};

const SECOND: u64 = 1_000_000_000;

/// When an operation is done, and when it acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// When the control plane has done it, ns.
    pub at: u64,
    /// When the data plane acts accordingly, ns.
    pub live_at: u64,
}

/// Why an operation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No room for another entry.
    TableFull,
    /// No such entry.
    Unknown,
    /// More messages to the controller than the limit allows.
    RateLimited,
    /// Too many frames wait to become messages.
    QueueFull,
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::TableFull => "the flow table is full",
            Self::Unknown => "there is no such flow entry",
            Self::RateLimited => "more packet_in messages than the switch sends in a second",
            Self::QueueFull => "too many frames wait to become packet_in messages",
        })
    }
}

impl core::error::Error for Refusal {}

/// An entry that has timed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expired {
    /// The caller's handle.
    pub id: u32,
    /// When it went, ns.
    pub at: u64,
    /// It had not been hit for its idle time; otherwise its hard time was over.
    pub idle: bool,
}

/// What the control plane has done. `packet_ins = sent + dropped`, of either kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlCounters {
    /// New entries.
    pub added: u64,
    /// Changed entries.
    pub modified: u64,
    /// Entries deleted on request.
    pub deleted: u64,
    /// Entries timed out.
    pub expired: u64,
    /// Refused for want of room.
    pub table_full: u64,
    /// Frames offered as messages.
    pub packet_ins: u64,
    /// Messages sent.
    pub packet_ins_sent: u64,
    /// Frames beyond the rate limit.
    pub packet_ins_limited: u64,
    /// Frames beyond the queue.
    pub packet_ins_overflowed: u64,
}

/// A control plane. `K` is where its description lives, `F` the memory for flow entries: a power of
/// two of them, and at least as many as are to fit.
#[derive(Clone, Debug)]
pub struct ControlPlane<K, F> {
    spec: K,
    flows: F,
    seed: u64,
    now: u64,
    servers: [u64; MAX_SERVERS],
    lag_free: u64,
    /// The latest instant at which anything accepted so far acts.
    all_live: u64,
    entries: u32,
    operations: u64,
    /// Token bucket: 1e-9 messages. Window: messages in it.
    allowance: u64,
    allowance_at: u64,
    /// No entry times out before.
    next_expiry: u64,
    counters: ControlCounters,
}

impl<K, F> ControlPlane<K, F>
where
    K: Deref<Target = ControlSpec>,
    F: AsRef<[Flow]> + AsMut<[Flow]>,
{
    /// A control plane whose chances are those of `seed`.
    pub fn new(spec: K, seed: u64, flows: F) -> Result<Self, ConfigError> {
        spec.check()?;
        if !flows.as_ref().len().is_power_of_two() {
            return Err(ConfigError::Slots);
        }
        let allowance = match spec.packet_in_limit {
            Some(PacketInLimit::Bucket { burst, .. }) => u64::from(burst) * SECOND,
            _ => 0,
        };
        Ok(Self {
            spec,
            flows,
            seed,
            now: 0,
            servers: [0; MAX_SERVERS],
            lag_free: 0,
            all_live: 0,
            entries: 0,
            operations: 0,
            allowance,
            allowance_at: 0,
            next_expiry: u64::MAX,
            counters: ControlCounters::default(),
        })
    }

    fn advance(&mut self, now: u64) -> u64 {
        self.now = now.clamp(self.now, MAX_TIME);
        self.now
    }

    /// Has an operation done; `extra` is work beyond its ordinary service.
    fn work(&mut self, now: u64, operation: OperationSpec, extra: u64) -> u64 {
        let server = &mut self.servers[usize::from(operation.server)];
        let service = operation.service.as_ns().saturating_add(extra);
        *server = (*server).max(now).saturating_add(service).min(MAX_TIME);
        server.saturating_add(operation.latency.as_ns()).min(MAX_TIME)
    }

    /// The data plane follows.
    fn follow(&mut self, at: u64) -> Done {
        let LagSpec { delay, spread, service } = self.spec.lag;
        self.lag_free = self.lag_free.max(at).saturating_add(service.as_ns()).min(MAX_TIME);
        let draw = Draws::first(self.seed).after(self.operations).get(Purpose::Jitter);
        self.operations += 1;
        let random = sample::uniform(0, spread.as_ns() as i64, draw) as u64;
        let mut live_at = self.lag_free.saturating_add(delay.as_ns() + random).min(MAX_TIME);
        if self.spec.barrier != Barrier::Reorder {
            live_at = live_at.max(self.all_live);
        }
        self.all_live = self.all_live.max(live_at);
        Done { at, live_at }
    }

    /// Work for the entries that one of `priority` displaces.
    fn displacement(&self, priority: u16) -> u64 {
        let flows = self.flows.as_ref().iter().filter(|f| f.used);
        let moved = match self.spec.moves {
            Moves::None => return 0,
            Moves::All => u64::from(self.entries),
            Moves::Higher => flows.filter(|f| f.priority > priority).count() as u64,
            Moves::Lower => flows.filter(|f| f.priority < priority).count() as u64,
        };
        moved.saturating_mul(self.spec.per_move.as_ns())
    }

    /// Adds entry `id`, or replaces it as [`modify`](Self::modify) does.
    ///
    /// It goes after `idle` without a [`hit`](Self::hit), or after `hard` in any case.
    pub fn add(
        &mut self,
        now: u64,
        id: u32,
        priority: u16,
        idle: Option<Span>,
        hard: Option<Span>,
    ) -> Result<Done, Refusal> {
        if table::find(self.flows.as_ref(), id).is_some() {
            return self.modify(now, id);
        }
        let now = self.advance(now);
        if self.entries >= self.spec.table || self.entries as usize >= self.flows.as_ref().len() {
            self.counters.table_full += 1;
            return Err(Refusal::TableFull);
        }
        let at = self.work(now, self.spec.add, self.displacement(priority));
        let done = self.follow(at);
        let mut flow =
            Flow { id, priority, live: done.live_at, last_hit: done.live_at, ..Flow::EMPTY };
        flow.idle = idle.map_or(0, Span::as_ns);
        flow.hard = hard.map_or(u64::MAX, |hard| done.live_at.saturating_add(hard.as_ns()));
        self.next_expiry = self.next_expiry.min(flow.expiry().0);
        table::insert(self.flows.as_mut(), flow);
        self.entries += 1;
        self.counters.added += 1;
        Ok(done)
    }

    /// Changes entry `id`.
    pub fn modify(&mut self, now: u64, id: u32) -> Result<Done, Refusal> {
        let now = self.advance(now);
        let i = table::find(self.flows.as_ref(), id).ok_or(Refusal::Unknown)?;
        let priority = self.flows.as_ref()[i].priority;
        let extra = if self.spec.modify_moves { self.displacement(priority) } else { 0 };
        let at = self.work(now, self.spec.modify, extra);
        self.counters.modified += 1;
        Ok(self.follow(at))
    }

    /// Deletes entry `id`; in the data plane it acts until the given time.
    pub fn delete(&mut self, now: u64, id: u32) -> Result<Done, Refusal> {
        let now = self.advance(now);
        let i = table::find(self.flows.as_ref(), id).ok_or(Refusal::Unknown)?;
        table::remove(self.flows.as_mut(), i);
        self.entries -= 1;
        let at = self.work(now, self.spec.delete, 0);
        self.counters.deleted += 1;
        Ok(self.follow(at))
    }

    /// Whether a frame at `now` finds entry `id` in force; if so the entry is in use.
    pub fn hit(&mut self, now: u64, id: u32) -> bool {
        let now = self.advance(now);
        let Some(i) = table::find(self.flows.as_ref(), id) else { return false };
        let flow = &mut self.flows.as_mut()[i];
        let live = flow.live <= now;
        if live {
            flow.last_hit = now;
        }
        live
    }

    /// When a frame offered at `now` arrives at the controller as a message, if it does.
    pub fn packet_in(&mut self, now: u64) -> Result<u64, Refusal> {
        let now = self.advance(now);
        self.counters.packet_ins += 1;
        let operation = self.spec.packet_in;
        if let Some(queue) = self.spec.packet_in_queue {
            // All in the queue take the same time, so the backlog tells their number.
            let backlog = self.servers[usize::from(operation.server)].saturating_sub(now);
            let service = operation.service.as_ns().max(1);
            if backlog.div_ceil(service) >= u64::from(queue.count()) {
                self.counters.packet_ins_overflowed += 1;
                return Err(Refusal::QueueFull);
            }
        }
        if !self.within_limit(now) {
            self.counters.packet_ins_limited += 1;
            return Err(Refusal::RateLimited);
        }
        self.counters.packet_ins_sent += 1;
        Ok(self.work(now, operation, 0))
    }

    fn within_limit(&mut self, now: u64) -> bool {
        match self.spec.packet_in_limit {
            None => true,
            Some(PacketInLimit::Bucket { per_second, burst }) => {
                let gained = u64::from(per_second).saturating_mul(now - self.allowance_at);
                let full = u64::from(burst) * SECOND;
                self.allowance = self.allowance.saturating_add(gained).min(full);
                self.allowance_at = now;
                let pass = self.allowance >= SECOND;
                self.allowance -= if pass { SECOND } else { 0 };
                pass
            }
            Some(PacketInLimit::Window { per_second, one_more }) => {
                let window = now / SECOND;
                if window != self.allowance_at {
                    (self.allowance, self.allowance_at) = (0, window);
                }
                let pass = self.allowance < u64::from(per_second) + u64::from(one_more);
                self.allowance += u64::from(pass);
                pass
            }
        }
    }

    /// When a frame sent by the controller at `now` is at the port's queue.
    pub fn packet_out(&mut self, now: u64) -> u64 {
        let now = self.advance(now);
        self.work(now, self.spec.packet_out, 0)
    }

    /// When a request for statistics is answered.
    pub fn stats(&mut self, now: u64) -> u64 {
        let now = self.advance(now);
        self.work(now, self.spec.stats, 0)
    }

    /// When a barrier is answered.
    pub fn barrier(&mut self, now: u64) -> u64 {
        let now = self.advance(now);
        match self.spec.barrier {
            Barrier::AtInstall => self.all_live.max(now),
            Barrier::Early | Barrier::Reorder => now,
        }
    }

    /// When to ask [`expire`](Self::expire) next; it may find nothing, as hits put timeouts off.
    pub fn next_deadline(&self) -> Option<u64> {
        (self.next_expiry != u64::MAX).then(|| self.swept(self.next_expiry))
    }

    /// The look at timeouts that finds one of `at`.
    fn swept(&self, at: u64) -> u64 {
        match self.spec.sweep.as_ns() {
            0 => at,
            sweep => at.div_ceil(sweep).saturating_mul(sweep),
        }
    }

    /// An entry that has timed out by `now`.
    pub fn expire(&mut self, now: u64) -> Option<Expired> {
        let now = self.advance(now);
        if self.next_deadline()? > now {
            return None;
        }
        let flows = self.flows.as_ref();
        let timed = flows.iter().enumerate().filter(|(_, f)| f.used);
        let (i, (at, idle)) =
            timed.map(|(i, f)| (i, f.expiry())).min_by_key(|&(i, (at, _))| (at, i))?;
        if self.swept(at) > now {
            self.next_expiry = at;
            return None;
        }
        let id = flows[i].id;
        table::remove(self.flows.as_mut(), i);
        self.entries -= 1;
        self.counters.expired += 1;
        if self.entries == 0 {
            self.next_expiry = u64::MAX;
        }
        Some(Expired { id, at: self.swept(at), idle })
    }

    /// Entries in the table.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// What was done so far.
    pub fn counters(&self) -> &ControlCounters {
        &self.counters
    }
}
