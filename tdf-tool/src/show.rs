// SPDX-License-Identifier: MIT OR Apache-2.0
//! `tdf get` and `tdf list`: a domain's dilation for people and for programs.

use std::fmt::Write;

use serde::Serialize;
use tdf_abi::Tdf;

use crate::dom0::{Listed, printable};
use crate::units::{Date, Seconds};
use crate::xen::Dilation;

/// A point of a segment.
#[derive(Debug, Serialize)]
struct Segment {
    real_ns: i64,
    virtual_ns: i64,
}

/// One domain, in JSON.
#[derive(Debug, Serialize)]
struct DomainJson {
    id: u16,
    name: String,
    tdf: String,
    num: u32,
    den: u32,
    active: bool,
    reveal: bool,
    segment: Segment,
    real_ns: i64,
    virtual_ns: i64,
    wall_ns: i64,
}

/// A domain, as `tdf list` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its name and id.
    pub listed: Listed,
    /// Its factor and clocks.
    pub dilation: Dilation,
    /// The factor that it was given, which may have been lost since.
    pub wanted: Option<Tdf>,
}

impl Shown {
    /// The wanted factor, if the domain has another.
    pub fn lost(&self) -> Option<Tdf> {
        self.wanted.filter(|wanted| *wanted != self.dilation.tdf)
    }
}

#[derive(Debug, Serialize)]
struct ShownJson {
    #[serde(flatten)]
    domain: DomainJson,
    wanted: Option<String>,
    lost: bool,
}

#[derive(Debug, Serialize)]
struct GetJson {
    schema: &'static str,
    #[serde(flatten)]
    domain: DomainJson,
}

#[derive(Debug, Serialize)]
struct ListJson {
    schema: &'static str,
    domains: Vec<ShownJson>,
}

fn domain_json(listed: &Listed, d: &Dilation) -> DomainJson {
    DomainJson {
        id: listed.id.0,
        name: listed.name.clone(),
        tdf: d.tdf.to_string(),
        num: d.tdf.num(),
        den: d.tdf.den(),
        active: d.active,
        reveal: d.reveal,
        segment: Segment { real_ns: d.real0_ns, virtual_ns: d.virt0_ns },
        real_ns: d.real_ns,
        virtual_ns: d.virt_ns,
        wall_ns: d.wall_ns,
    }
}

/// `value` as one line of JSON.
pub fn to_json(value: &impl Serialize) -> String {
    // Only maps with keys that are no strings can fail, and there are none.
    serde_json::to_string(value).expect("plain data") + "\n"
}

/// `tdf get --json`.
pub fn get_json(listed: &Listed, dilation: &Dilation) -> String {
    to_json(&GetJson { schema: "tdf.get/1", domain: domain_json(listed, dilation) })
}

/// `tdf list --json`.
pub fn list_json(domains: &[Shown]) -> String {
    let json = |shown: &Shown| ShownJson {
        domain: domain_json(&shown.listed, &shown.dilation),
        wanted: shown.wanted.map(|tdf| tdf.to_string()),
        lost: shown.lost().is_some(),
    };
    let domains = domains.iter().map(json).collect();
    to_json(&ListJson { schema: "tdf.list/1", domains })
}

/// `tdf get`.
pub fn get_text(listed: &Listed, d: &Dilation) -> String {
    let meaning = match (d.active, d.tdf.num(), d.tdf.den()) {
        (false, ..) => "never dilated".to_owned(),
        (true, num, den) => format!("{num} ns of real time are {den} ns of the domain's"),
    };
    let reveal = if d.reveal { "the domain may read real time" } else { "hidden from the domain" };
    format!(
        "{} (domain {})\n  TDF         {} ({meaning})\n  since       real {} s, virtual {} s\n  \
         real time   {} s, {reveal}\n  virtual     {} s\n  wall clock  {}\n",
        printable(&listed.name),
        listed.id,
        d.tdf,
        Seconds(d.real0_ns),
        Seconds(d.virt0_ns),
        Seconds(d.real_ns),
        Seconds(d.virt_ns),
        Date(d.wall_ns)
    )
}

/// `tdf list`.
pub fn list_text(domains: &[Shown]) -> String {
    let longest = domains.iter().map(|shown| shown.listed.name.chars().count());
    let width = longest.max().unwrap_or(0).max(20);
    let mut out = format!(
        "{:width$} {:>5} {:>12} {:>12}  {:7} {:6} {:>22}\n",
        "Name", "ID", "TDF", "Wanted", "Dilated", "Reveal", "virtual - real (s)"
    );
    let yes = |flag| if flag { "yes" } else { "no" };
    for shown in domains {
        let (listed, d) = (&shown.listed, &shown.dilation);
        let wanted = shown.wanted.map_or("-".to_owned(), |tdf| tdf.to_string());
        let behind = Seconds(d.virt_ns.saturating_sub(d.real_ns));
        // Writing to a String does not fail.
        let _ = writeln!(
            out,
            "{:width$} {:>5} {:>12} {wanted:>12}  {:7} {:6} {behind:>22}",
            printable(&listed.name),
            listed.id,
            d.tdf.to_string(),
            yes(d.active),
            yes(d.reveal),
        );
    }
    for shown in domains {
        let (name, now) = (printable(&shown.listed.name), shown.dilation.tdf);
        if let Some(wanted) = shown.lost() {
            let _ = writeln!(
                out,
                "{name}: TDF {wanted} was lost, {now} holds: it was rebooted, restored or migrated; \
                 `tdf set {name} {wanted}` gives it back"
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xen::DomId;

    fn example() -> (Listed, Dilation) {
        let dilation = Dilation {
            tdf: "2.5".parse().unwrap(),
            active: true,
            reveal: false,
            real0_ns: 1_000_000_000,
            virt0_ns: 1_000_000_000,
            real_ns: 6_000_000_000,
            virt_ns: 3_000_000_000,
            wall_ns: 1_700_000_003_000_000_000,
        };
        (Listed { name: "web".into(), id: DomId(3) }, dilation)
    }

    fn shown(wanted: Option<&str>) -> Shown {
        let (listed, dilation) = example();
        Shown { listed, dilation, wanted: wanted.map(|text| text.parse().unwrap()) }
    }

    #[test]
    fn a_lost_factor_is_shown_and_a_kept_one_is_not() {
        let lost = [shown(Some("10"))];
        assert!(list_text(&lost).ends_with("`tdf set web 10` gives it back\n"));
        assert!(list_json(&lost).contains("\"wanted\":\"10\",\"lost\":true"));
        for kept in [[shown(Some("5/2"))], [shown(None)]] {
            assert!(!list_text(&kept).contains("lost"));
            assert!(list_json(&kept).contains("\"lost\":false"));
        }
    }

    #[test]
    fn json_has_its_schema_and_whole_nanoseconds() {
        let (listed, dilation) = example();
        assert_eq!(
            get_json(&listed, &dilation),
            "{\"schema\":\"tdf.get/1\",\"id\":3,\"name\":\"web\",\"tdf\":\"5/2\",\"num\":5,\"den\":2,\
             \"active\":true,\"reveal\":false,\"segment\":{\"real_ns\":1000000000,\
             \"virtual_ns\":1000000000},\"real_ns\":6000000000,\"virtual_ns\":3000000000,\
             \"wall_ns\":1700000003000000000}\n"
        );
        let list: serde_json::Value =
            serde_json::from_str(&list_json(&[shown(None), shown(None)])).unwrap();
        assert_eq!(list["schema"], "tdf.list/1");
        assert_eq!(list["domains"][1]["virtual_ns"], 3_000_000_000u64);
    }

    #[test]
    fn people_see_the_factor_both_clocks_and_how_far_they_are_apart() {
        let (listed, dilation) = example();
        let text = get_text(&listed, &dilation);
        for part in ["web (domain 3)", "5/2", "6.000000000 s", "3.000000000 s", "2023-11-14"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(list_text(&[shown(None)]).contains("-3.000000000"));
    }
}
