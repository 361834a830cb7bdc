// SPDX-License-Identifier: MIT OR Apache-2.0
//! The description of a port, in the units that the emulated network sees.

use crate::{
    Chance, CodelSpec, Frames, Framing, Jitter, Loss, PolicerSpec, Probability, Rate, RedSpec,
    Size, SlotsSpec, Span, list::Few,
};

/// Most traffic classes of a port.
pub const MAX_CLASSES: usize = 8;

/// Forwarding that starts before the whole frame is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct CutThroughSpec {
    /// The rate at which frames come in. If the port is faster, it cannot cut through.
    pub ingress_rate: Rate,
    /// Bytes of the frame on the wire, preamble included, that must be in before the first goes out.
    pub after: Size,
}

/// A slow path: frames whose actions the hardware cannot do wait for one processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct ProcessorSpec {
    /// Time that the processor takes for a frame of lookup cost 1, 2 and 3. An action list costs as
    /// much as its dearest action.
    pub service: [Span; 3],
    /// Frames that it holds, the one in service among them; the rest is dropped.
    pub queue: Frames,
}

/// Who of the waiting frames goes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields))]
pub enum Scheduler {
    /// First in, first out, whatever the class.
    #[default]
    Fifo,
    /// Class 0 before class 1 before class 2 …
    Strict {
        /// How many classes.
        classes: u8,
    },
    /// Deficit round robin: classes share the rate by their quanta.
    Drr {
        /// Bytes that each class may send in its turn.
        quanta: Few<Size, MAX_CLASSES>,
    },
}

macro_rules! spec {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $default:expr,)*) => {
        /// A port, described in virtual units. Everything that is left out is ideal.
        ///
        /// As text: the same names as here, units mandatory, unknown keys refused; `profile = "…"`
        /// starts from a measured switch instead of from an ideal one.
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize))]
        pub struct PortSpec {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl PortSpec {
            /// A port that passes every frame at once.
            pub const IDEAL: Self = Self { $($field: $default,)* };
        }

        #[cfg(feature = "serde")]
        impl<'de> serde::Deserialize<'de> for PortSpec {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                #[derive(serde::Deserialize)]
                #[serde(deny_unknown_fields, rename = "a port")]
                struct Given {
                    #[serde(default)]
                    profile: Option<crate::Profile>,
                    $(#[serde(default = "absent")] $field: Present<$type>,)*
                }
                let given = Given::deserialize(from)?;
                let mut spec = given.profile.map_or(Self::IDEAL, |p| p.port());
                $(if let Some(value) = given.$field.0 { spec.$field = value; })*
                spec.build().map_err(serde::de::Error::custom)?;
                Ok(spec)
            }
        }
    };
}

/// A value that was there, whatever it was.
#[cfg(feature = "serde")]
struct Present<T>(Option<T>);

#[cfg(feature = "serde")]
fn absent<T>() -> Present<T> {
    Present(None)
}

#[cfg(feature = "serde")]
impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for Present<T> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        T::deserialize(from).map(|value| Self(Some(value)))
    }
}

spec! {
    /// Rate of the serialiser; none: frames take no time.
    rate: Option<Rate> = None,
    /// What the wire adds to each frame.
    framing: Framing = Framing {
        overhead: Size::bytes(0),
        min_frame: Size::bytes(0),
        preamble: Size::bytes(0),
        gap: Size::bytes(0),
        cell_payload: Size::bytes(0),
        cell_size: Size::bytes(0),
    },
    /// Longer frames are dropped.
    max_frame: Size = Size::bytes(crate::MAX_FRAME as u64),
    /// From the last bit in to the first bit that can go out: parsing and lookup.
    latency: Span = Span::ZERO,
    /// The slow path; none: all frames are forwarded in hardware.
    processor: Option<ProcessorSpec> = None,
    /// What the port accepts.
    policer: Option<PolicerSpec> = None,
    /// Most frames in the buffer, the one in service among them.
    queue_frames: Option<Frames> = None,
    /// Most bytes in the buffer.
    queue_bytes: Option<Size> = None,
    /// Random early detection.
    red: Option<RedSpec> = None,
    /// Marks each markable frame that finds more than so many in the buffer.
    mark_above: Option<Frames> = None,
    /// Controlled delay.
    codel: Option<CodelSpec> = None,
    /// The order of waiting frames.
    scheduler: Scheduler = Scheduler::Fifo,
    /// Forwarding before the frame is complete, where that is possible.
    cut_through: Option<CutThroughSpec> = None,
    /// Constant delay of the line.
    delay: Span = Span::ZERO,
    /// Variable delay of the line.
    jitter: Jitter = Jitter::None,
    /// Jittered frames push those behind them instead of being overtaken.
    keep_order: bool = false,
    /// Loss on the line.
    loss: Loss = Loss::None,
    /// Frames that arrive twice.
    duplicate: Chance = Chance::of(Probability::ZERO),
    /// Frames with a flipped bit.
    corrupt: Chance = Chance::of(Probability::ZERO),
    /// Frames that skip the line's delay.
    reorder: Chance = Chance::of(Probability::ZERO),
    /// Transmission opportunities at the end of the line.
    slots: Option<SlotsSpec> = None,
}

impl Default for PortSpec {
    fn default() -> Self {
        Self::IDEAL
    }
}
