// SPDX-License-Identifier: MIT OR Apache-2.0
//! The description of a control plane.

use crate::{ConfigError, Frames, Span};

/// Servers of a control plane: each works off its operations one after the other.
pub const MAX_SERVERS: usize = 4;

/// What one kind of operation costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields, default))]
pub struct OperationSpec {
    /// Which server does it (0 ..= 3).
    pub server: u8,
    /// How long that server is busy with it.
    pub service: Span,
    /// Time that passes besides, in which the server does other work.
    pub latency: Span,
}

impl OperationSpec {
    /// Work of `service` on `server`.
    pub const fn on(server: u8, service: Span) -> Self {
        Self { server, service, latency: Span::ZERO }
    }

    /// Time that passes without keeping a server busy.
    pub const fn after(latency: Span) -> Self {
        Self { server: 0, service: Span::ZERO, latency }
    }
}

/// Which entries of a priority-ordered memory must move to make room for a new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Moves {
    /// None.
    #[default]
    None,
    /// All, whatever their priority: the cost grows with occupancy.
    All,
    /// Those of higher priority: inserting in descending order is slow.
    Higher,
    /// Those of lower priority: inserting in ascending order is slow.
    Lower,
}

/// When a barrier is answered, and whether the data plane keeps the order of operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Barrier {
    /// When everything before it is in force in the data plane, as the protocol demands.
    #[default]
    AtInstall,
    /// At once, as real switches do.
    Early,
    /// At once, and the data plane takes operations in any order.
    Reorder,
}

/// The way from the control plane's tables to the hardware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields, default))]
pub struct LagSpec {
    /// A constant delay.
    pub delay: Span,
    /// Beyond it, up to so much, all values equally likely.
    pub spread: Span,
    /// Work per operation: if it exceeds the control plane's, the data plane falls ever further behind.
    pub service: Span,
}

/// How many frames a second may become messages to the controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields))]
pub enum PacketInLimit {
    /// A token bucket.
    Bucket {
        /// Messages per second in the long run.
        per_second: u32,
        /// Messages at once after a silence.
        burst: u32,
    },
    /// A count that starts anew with each whole second.
    Window {
        /// Messages per second.
        per_second: u32,
        /// One more than that, as ocaml-openflow's comparison lets through.
        one_more: bool,
    },
}

/// A control plane, in virtual units. Everything that is left out takes no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields, default))]
pub struct ControlSpec {
    /// Flow entries that the table takes.
    pub table: u32,
    /// A new entry.
    pub add: OperationSpec,
    /// A change of an entry.
    pub modify: OperationSpec,
    /// The removal of an entry.
    pub delete: OperationSpec,
    /// A frame becomes a message to the controller.
    pub packet_in: OperationSpec,
    /// A message from the controller becomes a frame.
    pub packet_out: OperationSpec,
    /// A request for statistics.
    pub stats: OperationSpec,
    /// Entries that a new one displaces …
    pub moves: Moves,
    /// … and the time that each takes.
    pub per_move: Span,
    /// Whether a change displaces entries as an insertion does.
    pub modify_moves: bool,
    /// When barriers are answered.
    pub barrier: Barrier,
    /// The data plane behind the control plane.
    pub lag: LagSpec,
    /// What limits messages to the controller.
    pub packet_in_limit: Option<PacketInLimit>,
    /// Frames that wait to become messages; more are dropped.
    pub packet_in_queue: Option<Frames>,
    /// How often timeouts are looked at; zero: they act at once.
    pub sweep: Span,
}

impl ControlSpec {
    /// A control plane that takes no time.
    pub const IDEAL: Self = {
        const FREE: OperationSpec = OperationSpec::on(0, Span::ZERO);
        Self {
            table: u32::MAX,
            add: FREE,
            modify: FREE,
            delete: FREE,
            packet_in: FREE,
            packet_out: FREE,
            stats: FREE,
            moves: Moves::None,
            per_move: Span::ZERO,
            modify_moves: false,
            barrier: Barrier::AtInstall,
            lag: LagSpec { delay: Span::ZERO, spread: Span::ZERO, service: Span::ZERO },
            packet_in_limit: None,
            packet_in_queue: None,
            sweep: Span::ZERO,
        }
    };

    /// Whether it makes sense.
    pub fn check(&self) -> Result<(), ConfigError> {
        const MAX: u64 = 1 << 50;
        let operations =
            [&self.add, &self.modify, &self.delete, &self.packet_in, &self.packet_out, &self.stats];
        if operations.iter().any(|o| usize::from(o.server) >= MAX_SERVERS) {
            return Err(ConfigError::Servers);
        }
        if operations.iter().any(|o| o.service.as_ns() > MAX || o.latency.as_ns() > MAX) {
            return Err(ConfigError::TooLarge("the time of an operation"));
        }
        let LagSpec { delay, spread, service } = self.lag;
        if [delay, spread, service, self.sweep].iter().any(|span| span.as_ns() > MAX) {
            return Err(ConfigError::TooLarge("lag or sweep"));
        }
        if self.per_move.as_ns() > 1 << 30 {
            return Err(ConfigError::TooLarge("per_move"));
        }
        if self.table == 0 {
            return Err(ConfigError::Zero("table"));
        }
        match self.packet_in_limit {
            Some(
                PacketInLimit::Bucket { per_second: 0, .. }
                | PacketInLimit::Bucket { burst: 0, .. },
            ) => Err(ConfigError::Zero("packet_in_limit")),
            _ => Ok(()),
        }
    }
}

impl Default for ControlSpec {
    fn default() -> Self {
        Self::IDEAL
    }
}

/// The model of mirage/ocaml-openflow, by its own names. There two of the six fields are never read
/// and a third needs a fourth; here all act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OcamlOpenflow {
    /// Time to insert one new match.
    pub flow_insert: Span,
    /// Time to change one existing match.
    pub flow_update: Span,
    /// Messages to the controller per second.
    pub pktin_rate: u32,
    /// Time of one message to the controller.
    pub pktin_delay: Span,
    /// Time to answer a request for statistics.
    pub stats_delay: Span,
    /// Time of one message from the controller.
    pub pktout_delay: Span,
}

impl OcamlOpenflow {
    /// The values in its `basic_switch.ml`.
    pub const BASIC_SWITCH: Self = Self {
        flow_insert: Span::ms(2),
        flow_update: Span::ms(2),
        pktin_rate: 18,
        pktin_delay: Span::ms(2),
        stats_delay: Span::ZERO,
        pktout_delay: Span::ZERO,
    };

    /// The same behaviour here. `compatible`: with one message too many per second.
    pub const fn control(self, compatible: bool) -> ControlSpec {
        let per_second = self.pktin_rate;
        ControlSpec {
            add: OperationSpec::on(0, self.flow_insert),
            modify: OperationSpec::on(1, self.flow_update),
            packet_in: OperationSpec::on(2, self.pktin_delay),
            packet_out: OperationSpec::on(3, self.pktout_delay),
            stats: OperationSpec::on(3, self.stats_delay),
            barrier: Barrier::Early,
            packet_in_limit: Some(PacketInLimit::Window { per_second, one_more: compatible }),
            sweep: Span::secs(1),
            ..ControlSpec::IDEAL
        }
    }
}
