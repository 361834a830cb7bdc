// SPDX-License-Identifier: MIT OR Apache-2.0
//! The description as text: what it means, and what is refused with which sentence.
#![cfg(feature = "serde")]

use switch_model::{
    Frames, Framing, Jitter, Loss, PortSpec, Probability, Profile, Rate, Scheduler, Size, Span,
    control::{ControlSpec, PacketInLimit},
};

fn port(text: &str) -> PortSpec {
    toml::from_str(text).expect("a description")
}

fn refusal(text: &str) -> String {
    toml::from_str::<PortSpec>(text).expect_err("it must be refused").to_string()
}

#[test]
fn a_description_says_what_it_means() {
    let spec = port(
        r#"
        rate = "10 Gbit/s"
        delay = "50 us"
        loss = "0.1 %"
        queue_bytes = "64 kB"
        queue_frames = "100 frames"
        jitter = { distribution = "pareto", mean = "1 ms", index = "2.5", correlation = "25 %" }
        scheduler = { kind = "drr", quanta = ["1500 B", "3000 B"] }
        duplicate = "1/1000"
        corrupt = { probability = "1 ppm", correlation = "10 %" }
        framing = { preamble = "8 B", gap = "12 B", min_frame = "64 B", overhead = "4 B" }
        "#,
    );
    assert_eq!(spec.rate, Some(Rate::gbit(10)));
    assert_eq!(spec.delay, Span::us(50));
    assert_eq!(spec.loss, Loss::random(Probability::ratio(1, 1000)));
    assert_eq!(spec.queue_bytes, Some(Size::bytes(64_000)));
    assert_eq!(spec.queue_frames, Some(Frames::new(100)));
    assert!(
        matches!(spec.jitter, Jitter::Pareto { correlation, .. } if correlation == Probability::ratio(1, 4))
    );
    assert!(matches!(spec.scheduler, Scheduler::Drr { quanta } if quanta.len() == 2));
    assert_eq!(spec.framing, Framing::ETHERNET);
    assert_eq!(port(""), PortSpec::IDEAL);
}

#[test]
fn a_profile_is_a_start_that_keys_change() {
    let spec = port("profile = \"pica8\"\nrate = \"1 Gbit/s\"");
    assert_eq!(spec, PortSpec { rate: Some(Rate::gbit(1)), ..Profile::Pica8.port() });
    for profile in Profile::ALL {
        assert_eq!(port(&format!("profile = \"{}\"", profile.name())), profile.port());
    }
    assert!(refusal("profile = \"pica9\"").contains("pica8"), "the known ones are listed");
}

#[test]
fn mistakes_get_a_sentence() {
    let cases = [
        ("delay = 50", "the unit is missing; expected a time such as \"50 us\""),
        ("delay = \"50\"", "the unit is missing"),
        ("delay = \"50 parsecs\"", "unknown unit"),
        ("rate = \"fast\"", "no decimal number found; expected a rate such as"),
        ("dealy = \"50 us\"", "unknown field `dealy`"),
        ("loss = \"120 %\"", "out of range; expected a probability"),
        ("loss = { model = \"bursty\", probability = \"1 %\" }", "missing field `burst`"),
        ("loss = { model = \"burst\", probability = \"1 %\" }", "unknown variant `burst`"),
        (
            "jitter = { distribution = \"normal\", spread = \"1 us\", mean = \"1 us\" }",
            "unknown field",
        ),
        ("jitter = { distribution = \"pareto\", mean = \"1 us\", index = \"1\" }", "Pareto index"),
        ("jitter = \"1 us\"\nkeep_order = true\nreorder = \"1 %\"", "contradict each other"),
        ("rate = \"0 bit/s\"", "never sends anything"),
        ("rate = \"10.000000001 Gbit/s\"", "whole number of kbit/s"),
        ("red = { min = \"9 kB\", max = \"3 kB\", probability = \"1 %\" }", "the minimum is above"),
        ("max_frame = \"70 kB\"", "max_frame is too large"),
    ];
    for (text, sentence) in cases {
        let said = refusal(text);
        assert!(said.contains(sentence), "{text}: {said}");
    }
}

/// Descriptions in which each key is somewhere not ideal.
fn descriptions() -> Vec<PortSpec> {
    let mut all: Vec<_> = Profile::ALL.iter().map(|profile| profile.port()).collect();
    for text in [
        "rate = \"10 Gbit/s\"\nframing = { gap = \"12 B\", overhead = \"4 B\" }\nloss = \"1/3\"",
        "queue = \"256 KiB\"\nmax_frame = \"1518 B\"\nlatency = \"3 us\"\nmark_above = \"65 frames\"",
        "queue = \"100 frames\"\nqueue_bytes = \"1 MB\"\ndelay = \"1 ms\"\nkeep_order = true",
        "policer = { rate = \"100 Mbit/s\", burst = \"15 kB\" }\nreorder = \"1 %\"\njitter = \"1 us\"",
        "red = { min = \"3 kB\", max = \"9 kB\", probability = \"2 %\" }\nduplicate = \"1 ppm\"",
        "codel = { target = \"5 ms\", interval = \"100 ms\" }\ncorrupt = \"0.2 %\"",
        "scheduler = { kind = \"drr\", quanta = [\"1500 B\", \"3 kB\"] }",
        "scheduler = { kind = \"strict\", classes = 3 }",
        "rate = \"1 Gbit/s\"\ncut_through = { ingress_rate = \"10 Gbit/s\", after = \"64 B\" }",
        "slots = { min_gap = \"1 ms\", max_gap = \"2 ms\", frames = \"5 frames\" }",
        "jitter = { distribution = \"table\", quantiles = [\"0 us\", \"1 us\", \"9 us\"] }",
        "jitter = { distribution = \"pareto\", mean = \"1 ms\", index = \"2.5\" }",
        "loss = { model = \"gilbert-elliott\", p = \"1 %\", r = \"10 %\" }",
        "loss = { model = \"four-state\", p13 = \"1 %\", p31 = \"20 %\", p14 = \"0.5 %\" }",
    ] {
        all.push(port(text));
    }
    all
}

#[test]
fn a_description_survives_being_written() {
    for spec in descriptions() {
        let text = toml::to_string(&spec).expect("it can be written");
        assert_eq!(port(&text), spec, "{text}");
        let json = serde_json::to_string(&spec).expect("it can be written");
        assert_eq!(serde_json::from_str::<PortSpec>(&json).expect("as written"), spec, "{json}");
    }
    for profile in Profile::ALL {
        let text = toml::to_string(&profile.control()).expect("it can be written");
        assert_eq!(toml::from_str(&text), Ok(profile.control()), "{text}");
    }
}

#[test]
fn only_what_is_not_ideal_is_written() {
    let json = |spec: &PortSpec| serde_json::to_string(spec).expect("it can be written");
    assert_eq!(json(&PortSpec::IDEAL), "{}");
    let spec =
        port("rate = \"10 Gbit/s\"\ndelay = \"0 ns\"\nqueue = \"64 kB\"\nkeep_order = false");
    assert_eq!(json(&spec), r#"{"rate":"10 Gbit/s","queue_bytes":"64 kB"}"#);
    let ideal = r#"{"profile":"pica8","rate":null,"framing":null,"latency":null}"#;
    assert_eq!(serde_json::from_str::<PortSpec>(ideal).ok(), Some(PortSpec::IDEAL));
}

#[test]
fn pairs_change_what_they_name() {
    let start =
        port("rate = \"1 Gbit/s\"\ndelay = \"1 ms\"\nqueue_frames = \"9 frames\"\nloss = \"1 %\"");
    let set = |pairs: &[(&str, &str)]| start.with_settings(pairs.iter().copied());
    assert_eq!(set(&[]), Ok(start));
    assert_eq!(
        set(&[
            ("rate", "10Gbit/s"),
            ("queue", "256 KiB"),
            ("loss", "none"),
            ("keep_order", "true")
        ]),
        Ok(PortSpec {
            rate: Some(Rate::gbit(10)),
            queue_bytes: Some(Size::bytes(256 << 10)),
            loss: Loss::None,
            keep_order: true,
            ..start
        })
    );
    assert_eq!(set(&[("queue", "none")]), Ok(PortSpec { queue_frames: None, ..start }));
    assert_eq!(
        set(&[("queue", "7 frames")]),
        Ok(PortSpec { queue_frames: Some(Frames::new(7)), ..start })
    );
    // Whatever their order, the keys come after the profile.
    assert_eq!(
        set(&[("latency", "1 us"), ("profile", "pica8")]),
        Ok(PortSpec { latency: Span::us(1), ..Profile::Pica8.port() })
    );
    // A table is several pairs, a list has commas.
    assert_eq!(
        set(&[
            ("loss.burst", "10 frames"),
            ("delay", "none"),
            ("loss.model", "bursty"),
            ("loss.probability", "0.1 %"),
            ("scheduler.kind", "drr"),
            ("scheduler.quanta", "1500 B,3000 B"),
            ("jitter.distribution", "pareto"),
            ("jitter.mean", "1 ms"),
            ("jitter.index", "2"),
        ]),
        Ok(PortSpec {
            delay: Span::ZERO,
            ..port(
                r#"rate = "1 Gbit/s"
                queue_frames = "9 frames"
                loss = { model = "bursty", probability = "0.1 %", burst = "10 frames" }
                scheduler = { kind = "drr", quanta = ["1500 B", "3000 B"] }
                jitter = { distribution = "pareto", mean = "1 ms", index = 2 }"#
            )
        })
    );
    assert_eq!(
        set(&[("scheduler.kind", "strict"), ("scheduler.classes", "3")]).map(|s| s.scheduler),
        Ok(Scheduler::Strict { classes: 3 })
    );
    for (pairs, sentence) in [
        (&[("dealy", "50 us")][..], "unknown field `dealy`"),
        (&[("delay", "50")], "delay: \"50\": the unit is missing; expected a time such as"),
        (&[("loss", "1")], "loss: invalid type: integer `1`, expected a probability such as"),
        (&[("delay.x", "50 us")], "delay: invalid type: map, expected a time such as"),
        (
            &[("keep_order", "perhaps")],
            "keep_order: invalid type: string \"perhaps\", expected a boolean",
        ),
        (&[("profile", "pica9")], "profile: unknown variant `pica9`, expected one of `ideal`"),
        (&[("rate", "1 Gbit/s"), ("delay", "1 s"), ("rate", "2 Gbit/s")], "rate is given twice"),
        (&[("loss", "1 %"), ("loss.model", "bursty")], "loss is given twice"),
        (&[("queue", "1 kB"), ("queue_bytes", "2 kB")], "queue is given twice, under two names"),
        (&[("queue", "1 s")], "queue: \"1 s\": unknown unit; expected a size such as"),
        (&[("loss.model.of", "x")], "loss.model.of: too many points"),
        (&[("keep_order", "true"), ("reorder", "1 %")], "contradict each other"),
        (&[("", "")], "unknown field ``"),
    ] {
        let said = set(pairs).expect_err("it must be refused").to_string();
        assert!(said.contains(sentence), "{pairs:?}: {said}");
    }
}

#[test]
fn a_control_plane_too() {
    let spec: ControlSpec = toml::from_str(
        r#"
        table = 2048
        add = { service = "1 ms" }
        packet_in_limit = { kind = "bucket", per_second = 50, burst = 1 }
        barrier = "reorder"
        lag = { spread = "400 ms" }
        "#,
    )
    .expect("a description");
    assert_eq!(spec.add.service, Span::ms(1));
    assert_eq!(spec.packet_in_limit, Some(PacketInLimit::Bucket { per_second: 50, burst: 1 }));
    assert!(toml::from_str::<ControlSpec>("ad = { service = \"1 ms\" }").is_err());
}
