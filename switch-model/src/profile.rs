// SPDX-License-Identifier: MIT OR Apache-2.0
//! Switches that were measured, and some that were not but are of use beside them.
//!
//! Each parameter says where it comes from. Where the sources give a range, the profile takes what
//! is written beside it; where they are silent, the profile is ideal, and says that too.

use crate::{
    Frames, Framing, Jitter, PortSpec, Probability, ProcessorSpec, Rate, Span,
    control::{Barrier, ControlSpec, LagSpec, Moves, OcamlOpenflow, OperationSpec, PacketInLimit},
};

/// A measured switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Profile {
    /// No delay of its own anywhere.
    Ideal,
    /// Switch 1 of the OFLOPS measurements, an NEC.
    Nec,
    /// Switch 2, an HP: what it cannot do in hardware goes through a slow processor.
    Hp,
    /// Switch 4, a Pica8.
    Pica8,
    /// Open vSwitch in software.
    Ovs,
    /// The NetFPGA reference switch.
    Netfpga,
    /// mirage/ocaml-openflow's model with the values of its `basic_switch.ml`.
    OcamlOpenflow,
}

/// One parameter of a profile and its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sourced {
    /// What, in the words of [`PortSpec`] or [`ControlSpec`].
    pub parameter: &'static str,
    /// Its value.
    pub value: &'static str,
    /// Where it was measured, or why it was chosen.
    pub source: &'static str,
}

const fn sourced(parameter: &'static str, value: &'static str, source: &'static str) -> Sourced {
    Sourced { parameter, value, source }
}

/// The thesis with the OFLOPS measurements.
const OFLOPS: &str =
    "C. Rotsos, PhD thesis, Cambridge, ch. 1 (OFLOPS); median, the rig's 0.9 us included";
const OFLOPS_CONTROL: &str = "C. Rotsos, PhD thesis, Cambridge, ch. 1 (OFLOPS)";
const KUZNIAR: &str = "M. Kuzniar et al., PAM 2015 / Computer Networks 2018";
const SILENT: &str = "not measured by any source known to us: ideal";

/// Rate and framing of the measured ports: 100 Mbit/s Ethernet.
const MEASURED: PortSpec =
    PortSpec { rate: Some(Rate::mbit(100)), framing: Framing::ETHERNET, ..PortSpec::IDEAL };

impl Profile {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Ideal,
        Self::Nec,
        Self::Hp,
        Self::Pica8,
        Self::Ovs,
        Self::Netfpga,
        Self::OcamlOpenflow,
    ];

    /// Its name, as in a description.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ideal => "ideal",
            Self::Nec => "nec",
            Self::Hp => "hp",
            Self::Pica8 => "pica8",
            Self::Ovs => "ovs",
            Self::Netfpga => "netfpga",
            Self::OcamlOpenflow => "ocaml_openflow",
        }
    }

    /// What its ports do.
    pub const fn port(self) -> PortSpec {
        match self {
            Self::Ideal | Self::OcamlOpenflow => PortSpec::IDEAL,
            Self::Nec => PortSpec { latency: Span::us(4), ..MEASURED },
            Self::Hp => PortSpec {
                latency: Span::us(6),
                processor: Some(ProcessorSpec {
                    service: [Span::us(80); 3],
                    queue: Frames::new(4),
                }),
                ..MEASURED
            },
            Self::Pica8 => PortSpec { latency: Span::us(2), ..MEASURED },
            Self::Ovs => PortSpec {
                latency: Span::us(26),
                jitter: Jitter::Exponential { mean: Span::us(13), correlation: Probability::ZERO },
                keep_order: true,
                ..MEASURED
            },
            Self::Netfpga => PortSpec { latency: Span::us(3), ..MEASURED },
        }
    }

    /// What its control plane does.
    pub const fn control(self) -> ControlSpec {
        match self {
            Self::Ideal => ControlSpec::IDEAL,
            Self::Nec => ControlSpec {
                table: 3072,
                add: OperationSpec { latency: Span::us(800), ..OperationSpec::on(0, Span::ms(1)) },
                modify: OperationSpec {
                    latency: Span::us(800),
                    ..OperationSpec::on(0, Span::ms(1))
                },
                modify_moves: true,
                moves: Moves::All,
                per_move: Span::us(1),
                packet_in: OperationSpec::on(1, Span::ms(1)),
                packet_in_limit: Some(PacketInLimit::Bucket { per_second: 500, burst: 10 }),
                packet_out: OperationSpec::after(Span::ms(350)),
                barrier: Barrier::Early,
                ..ControlSpec::IDEAL
            },
            Self::Hp => ControlSpec {
                table: 1500,
                packet_in: OperationSpec::on(1, Span::us(800)),
                packet_out: OperationSpec::after(Span::ms(150)),
                barrier: Barrier::Early,
                lag: LagSpec { delay: Span::ZERO, spread: Span::ms(250), service: Span::ZERO },
                ..ControlSpec::IDEAL
            },
            Self::Pica8 => ControlSpec {
                table: 2048,
                add: OperationSpec::on(0, Span::ms(1)),
                modify: OperationSpec::on(0, Span::ms(1)),
                packet_in: OperationSpec::on(1, Span::ms(13)),
                packet_in_limit: Some(PacketInLimit::Bucket { per_second: 50, burst: 1 }),
                packet_out: OperationSpec::after(Span::us(100)),
                barrier: Barrier::Reorder,
                lag: LagSpec { delay: Span::ZERO, spread: Span::ms(400), service: Span::ZERO },
                ..ControlSpec::IDEAL
            },
            Self::Ovs => ControlSpec {
                table: 1_000_000,
                packet_in: OperationSpec::after(Span::ms(5)),
                packet_out: OperationSpec::after(Span::us(100)),
                ..ControlSpec::IDEAL
            },
            Self::Netfpga => ControlSpec { table: 32_868, ..ControlSpec::IDEAL },
            Self::OcamlOpenflow => OcamlOpenflow::BASIC_SWITCH.control(true),
        }
    }

    /// Where every parameter that is not ideal comes from.
    pub const fn sources(self) -> &'static [Sourced] {
        const RATE: Sourced = sourced(
            "rate, framing",
            "100 Mbit/s Ethernet",
            "the ports of the OFLOPS rig; set your own",
        );
        const EARLY: Sourced = sourced(
            "barrier",
            "early",
            "thesis, ch. 1: replies come at near constant delay, before the rule is in force",
        );
        match self {
            Self::Ideal => &[],
            Self::Nec => {
                const S: [Sourced; 8] = [
                    RATE,
                    EARLY,
                    sourced("latency", "4 us", OFLOPS),
                    sourced("table", "3072", OFLOPS_CONTROL),
                    sourced("add", "1 ms in bulk, 1.8 ms for one", OFLOPS_CONTROL),
                    sourced(
                        "modify, moves, per_move",
                        "1 ms, all, 1 us",
                        "thesis, ch. 1: modify is slower than add above 10 entries, and cost grows with occupancy; no figure is given, 1 us per entry is our choice",
                    ),
                    sourced(
                        "packet_in, packet_in_limit",
                        "1 ms, 500 per second, burst 10",
                        "thesis, ch. 1: 1 ms, at most 500 a second; the burst is our choice",
                    ),
                    sourced("packet_out", "350 ms", OFLOPS_CONTROL),
                ];
                &S
            }
            Self::Hp => {
                const S: [Sourced; 8] = [
                    RATE,
                    EARLY,
                    sourced("latency", "6 us", OFLOPS),
                    sourced(
                        "processor",
                        "80 us, 4 frames",
                        "derived from the thesis: 88 % loss of 104 167 frames/s leaves 12 500 a second; 301 to 335 us are four of these times",
                    ),
                    sourced("table", "1500", OFLOPS_CONTROL),
                    sourced(
                        "packet_in",
                        "0.8 ms",
                        "thesis, ch. 1; the 10 s at 2000 a second are the queue that this service time builds up",
                    ),
                    sourced("packet_out", "150 ms", OFLOPS_CONTROL),
                    sourced("lag.spread; add, modify", "up to 250 ms; ideal", KUZNIAR),
                ];
                &S
            }
            Self::Pica8 => {
                const S: [Sourced; 7] = [
                    RATE,
                    sourced("latency", "2 us", OFLOPS),
                    sourced("table", "2048", OFLOPS_CONTROL),
                    sourced("add, modify", "1 ms", OFLOPS_CONTROL),
                    sourced(
                        "packet_in, packet_in_limit",
                        "13 ms, 50 per second",
                        "thesis, ch. 1: 9 to 17 ms, at most 50 a second; the middle of the range",
                    ),
                    sourced("packet_out", "0.1 ms", OFLOPS_CONTROL),
                    sourced("barrier, lag.spread", "reorder, up to 400 ms", KUZNIAR),
                ];
                &S
            }
            Self::Ovs => {
                const S: [Sourced; 6] = [
                    RATE,
                    sourced(
                        "latency, jitter",
                        "26 us + exponential of mean 13 us",
                        "thesis, ch. 1: median 35 us, standard deviation 13 us; the shape is our choice",
                    ),
                    sourced("table", "1 000 000", OFLOPS_CONTROL),
                    sourced(
                        "packet_in",
                        "5 ms",
                        "thesis, ch. 1: 1 to 10 ms at any rate; the middle",
                    ),
                    sourced("packet_out", "0.1 ms", OFLOPS_CONTROL),
                    sourced("add, modify", "ideal", "thesis, ch. 1: at the speed of memory"),
                ];
                &S
            }
            Self::Netfpga => {
                const S: [Sourced; 4] = [
                    RATE,
                    sourced("latency", "3 us", OFLOPS),
                    sourced(
                        "table",
                        "32 868",
                        "thesis, ch. 1: 32 K exact and 100 wildcard entries",
                    ),
                    sourced("everything else", "ideal", SILENT),
                ];
                &S
            }
            Self::OcamlOpenflow => {
                const BASIC: &str = "mirage/ocaml-openflow, switch/basic_switch.ml";
                const MODEL: &str = "mirage/ocaml-openflow, lib/ofswitch_model.ml";
                const S: [Sourced; 5] = [
                    sourced("add, modify", "2 ms, each on a server of its own", BASIC),
                    sourced("packet_in", "2 ms, 18 per second", BASIC),
                    sourced("packet_in_limit.one_more", "true", MODEL),
                    sourced("barrier, sweep", "early, 1 s", MODEL),
                    sourced("stats, packet_out", "0", BASIC),
                ];
                &S
            }
        }
    }
}
