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
        /// starts from a measured switch instead of from an ideal one, and `queue` is `queue_bytes`
        /// or `queue_frames`, as its unit says. Only what is not ideal is written.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct PortSpec {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl PortSpec {
            /// A port that passes every frame at once.
            pub const IDEAL: Self = Self { $($field: $default,)* };
        }

        /// The keys that a text gives.
        #[cfg(feature = "serde")]
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields, rename = "a port")]
        pub(crate) struct Changes {
            #[serde(default)]
            profile: Option<crate::Profile>,
            #[serde(default)]
            queue: Given<Queue>,
            $(#[serde(default)] $field: Given<$type>,)*
        }

        #[cfg(feature = "serde")]
        impl Changes {
            /// Puts them into `spec`, which is to be checked then.
            pub(crate) fn onto<E: serde::de::Error>(self, spec: PortSpec) -> Result<PortSpec, E> {
                let mut spec = self.profile.map_or(spec, |profile| profile.port());
                let given_too = match self.queue {
                    Given::Not => false,
                    Given::This(None) => {
                        (spec.queue_bytes, spec.queue_frames) = (None, None);
                        false
                    }
                    Given::This(Some(Queue::Bytes(size))) => {
                        spec.queue_bytes = Some(size);
                        matches!(self.queue_bytes, Given::This(_))
                    }
                    Given::This(Some(Queue::Frames(frames))) => {
                        spec.queue_frames = Some(frames);
                        matches!(self.queue_frames, Given::This(_))
                    }
                };
                if given_too {
                    return Err(E::custom("queue is given twice, under two names"));
                }
                $(if let Given::This(value) = self.$field {
                    spec.$field = value.unwrap_or(PortSpec::IDEAL.$field);
                })*
                Ok(spec)
            }
        }

        #[cfg(feature = "serde")]
        impl<'de> serde::Deserialize<'de> for PortSpec {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let spec = Changes::deserialize(from)?.onto::<D::Error>(Self::IDEAL)?;
                spec.build().map_err(serde::de::Error::custom)?;
                Ok(spec)
            }
        }

        #[cfg(feature = "serde")]
        impl serde::Serialize for PortSpec {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeStruct;
                let keys = 0 $(+ usize::from(self.$field != Self::IDEAL.$field))*;
                let mut text = to.serialize_struct("PortSpec", keys)?;
                $(if self.$field != Self::IDEAL.$field {
                    text.serialize_field(stringify!($field), &self.$field)?;
                })*
                text.end()
            }
        }
    };
}

/// A value that was left out, or `null` or `none` for the ideal one, or itself.
#[cfg(feature = "serde")]
#[derive(Default)]
enum Given<T> {
    #[default]
    Not,
    This(Option<T>),
}

#[cfg(feature = "serde")]
impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for Given<T> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Option::deserialize(from).map(Self::This)
    }
}

/// The limit of a buffer in either unit.
#[cfg(feature = "serde")]
enum Queue {
    Bytes(Size),
    Frames(Frames),
}

#[cfg(feature = "serde")]
impl core::str::FromStr for Queue {
    type Err = crate::UnitError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self::Frames).or_else(|_| text.parse().map(Self::Bytes))
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Queue {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        crate::units::text(from, "a size such as \"64 kB\" or a number such as \"100 frames\"")
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
