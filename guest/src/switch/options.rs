// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the command line says about the switch: `ports=4 fdb.age=60s port.2.rate=10Gbit/s …`.

use alloc::string::String;
use alloc::vec::Vec;
use alloc::{format, vec};

use serde_json::{Map, Value};
use switch_model::{PortSpec, Span};

use super::fabric::PORTS_MAX;
use super::fdb::AGE_NS;

/// Ports without the word `ports=`.
const PORTS: usize = 16;

/// What the switch is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// `ports=`: how many ports it has.
    pub ports: usize,
    /// `fdb.age=`: how long a station is remembered that says nothing, ns.
    pub age_ns: u64,
    /// `seed=`: of all chances.
    pub seed: u64,
    /// `port.N.KEY=`, `port.N.ingress.KEY=`: the settings of each port to its host, and from it.
    pub settings: Vec<(PortSpec, PortSpec)>,
}

impl Options {
    /// Reads the words that are for the switch.
    ///
    /// # Errors
    /// A sentence that names the word.
    pub fn parse(line: &str) -> Result<Self, String> {
        let mut options = Self { ports: PORTS, age_ns: AGE_NS, seed: 1, settings: Vec::new() };
        let mut words = Vec::new();
        for word in line.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else { continue };
            let wrong = |what: &str| format!("{word}: {what}");
            match key {
                "ports" => {
                    let ports = value.parse().ok().filter(|n| (1..=PORTS_MAX).contains(n));
                    options.ports =
                        ports.ok_or_else(|| wrong(&format!("expected 1 to {PORTS_MAX}")))?;
                }
                "seed" => {
                    let seed = value.parse().map_err(|_| wrong("expected a number"))?;
                    options.seed = seed;
                }
                "fdb.age" => {
                    let age: Span = value.parse().map_err(|e| wrong(&format!("{e}")))?;
                    options.age_ns = age.as_ns();
                }
                _ => {
                    if let Some(rest) = key.strip_prefix("port.") {
                        words.push((word, rest, value));
                    }
                }
            }
        }
        let mut tables = vec![(Map::new(), Map::new()); options.ports];
        for (word, rest, value) in words {
            let Some((port, key)) = rest.split_once('.') else { continue };
            let ports = options.ports;
            let both = port.parse().ok().and_then(|port: usize| tables.get_mut(port));
            let (egress, ingress) =
                both.ok_or_else(|| format!("{word}: expected a port below {ports}"))?;
            let (table, key) = match key.strip_prefix("ingress.") {
                Some(key) => (ingress, key),
                None => (egress, key),
            };
            insert(table, key, value);
        }
        for (port, (egress, ingress)) in tables.into_iter().enumerate() {
            let spec = |table| {
                let spec = serde_json::from_value(Value::Object(table));
                spec.map_err(|error| format!("port.{port}: {error}"))
            };
            options.settings.push((spec(egress)?, spec(ingress)?));
        }
        Ok(options)
    }
}

/// Puts `loss.burst=…` into the table `loss`, and so on. What looks like a number or a truth is one.
fn insert(table: &mut Map<String, Value>, key: &str, value: &str) {
    if let Some((head, rest)) = key.split_once('.') {
        let inner = table.entry(head).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(inner) = inner {
            insert(inner, rest, value);
        }
        return;
    }
    let one = |text: &str| match (text.parse::<u64>(), text) {
        (Ok(number), _) => Value::from(number),
        (_, "true" | "false") => Value::Bool(text == "true"),
        (_, "none") => Value::Null,
        _ => Value::from(text),
    };
    let value = match value.split_once(',') {
        Some(_) => Value::Array(value.split(',').map(one).collect()),
        None => one(value),
    };
    table.insert(key.into(), value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use switch_model::{Rate, Scheduler, Size};

    #[test]
    fn ports_get_their_settings() {
        let line = "role=switch ports=4 fdb.age=5s seed=9 port.2.rate=10Gbit/s port.2.delay=50us \
                    port.3.ingress.delay=1ms root=/dev/xvda";
        let options = Options::parse(line).unwrap();
        assert_eq!((options.ports, options.age_ns, options.seed), (4, 5_000_000_000, 9));
        let spec = PortSpec { rate: Some(Rate::gbit(10)), delay: Span::us(50), ..PortSpec::IDEAL };
        assert_eq!(options.settings[2], (spec, PortSpec::IDEAL));
        let spec = PortSpec { delay: Span::ms(1), ..PortSpec::IDEAL };
        assert_eq!(options.settings[3], (PortSpec::IDEAL, spec));
        let text = "port.0.scheduler.kind=drr port.0.scheduler.quanta=1500B,3000B \
                    port.0.keep_order=true port.0.loss=0.1% port.1.scheduler.kind=strict \
                    port.1.scheduler.classes=2 port.1.rate=none";
        let spec = Options::parse(text).unwrap().settings;
        assert!(spec[0].0.keep_order && spec[0].0.loss != PortSpec::IDEAL.loss);
        let quanta = switch_model::Few::new(&[Size::bytes(1500), Size::bytes(3000)]).unwrap();
        assert_eq!(spec[0].0.scheduler, Scheduler::Drr { quanta });
        assert_eq!(spec[1].0.scheduler, Scheduler::Strict { classes: 2 });
        assert_eq!(options.settings[0], (PortSpec::IDEAL, PortSpec::IDEAL));
        assert_eq!(Options::parse("").unwrap().ports, PORTS);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (line, sentence) in [
            ("ports=0", "ports=0: expected 1 to 64"),
            ("ports=65", "ports=65: expected 1 to 64"),
            ("seed=x", "seed=x: expected a number"),
            ("port.16.rate=1Gbit/s", "port.16.rate=1Gbit/s: expected a port below 16"),
        ] {
            assert_eq!(Options::parse(line).unwrap_err(), sentence);
        }
        for (line, start) in [
            ("port.1.rat=1Gbit/s", "port.1: "),
            ("port.1.delay=50", "port.1: "),
            ("fdb.age=3", "fdb.age=3: "),
        ] {
            let error = Options::parse(line).unwrap_err();
            assert!(error.starts_with(start), "{error}");
        }
    }
}
