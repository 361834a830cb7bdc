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
        ("delay = 50", "a time such as \"50 us\""),
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

#[test]
fn a_description_survives_being_written() {
    for profile in Profile::ALL {
        let spec = PortSpec { loss: Loss::random(Probability::ratio(1, 3)), ..profile.port() };
        let text = toml::to_string(&spec).expect("it can be written");
        assert_eq!(port(&text), spec, "{text}");
        let text = toml::to_string(&profile.control()).expect("it can be written");
        assert_eq!(toml::from_str(&text), Ok(profile.control()), "{text}");
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
