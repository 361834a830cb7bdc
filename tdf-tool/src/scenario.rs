// SPDX-License-Identifier: MIT OR Apache-2.0
//! Scenarios: which domains exist, at which TDF, and what must hold.
//!
//! A scenario is complete: nothing that it does not say is taken from the machine it runs on, so
//! that the lab and a production host run the same thing. Every mistake is reported, not the first.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tdf_abi::Tdf;

use crate::units::Span;

/// A scenario that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// The domains run one after another, not together.
    pub sequential: bool,
    /// Real time that a domain has; `None`: enough for its span.
    pub timeout: Option<Span>,
    /// The domains, each with its check.
    pub domains: Vec<Domain>,
}

/// A domain and what is asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its name, for xl too.
    pub name: String,
    /// What runs in it.
    pub kind: Kind,
    /// How it gets its factor.
    pub factor: Factor,
    /// `tsc_mode` of its configuration.
    pub tsc_mode: TscMode,
    /// MiB of memory.
    pub memory_mib: Option<u32>,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// For how long its clocks are watched.
    pub span: CheckSpan,
    /// How often in that time.
    pub samples: u32,
}

/// What runs in a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Our own kernel.
    Guest,
    /// An unmodified PV Linux with the lab's initramfs.
    Linux,
    /// Whatever this xl configuration says.
    Config(PathBuf),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guest => "guest",
            Self::Linux => "linux",
            Self::Config(_) => "config",
        })
    }
}

/// Where a domain's factor comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// `tdf` sets it.
    Set(Tdf),
    /// The hypervisor's default, which is to be this.
    Default(Tdf),
}

impl Factor {
    /// The factor.
    pub const fn tdf(self) -> Tdf {
        match self {
            Self::Set(tdf) | Self::Default(tdf) => tdf,
        }
    }
}

/// What `RDTSC` is to the domain; xl's names.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum TscMode {
    /// Xen chooses.
    #[default]
    Default,
    /// The processor's.
    Native,
    /// Xen's, 1 GHz of virtual time or the frequency at boot.
    AlwaysEmulate,
}

impl fmt::Display for TscMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Default => "default",
            Self::Native => "native",
            Self::AlwaysEmulate => "always_emulate",
        })
    }
}

/// For how long clocks are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckSpan {
    /// So much of the domain's time.
    Virtual(Span),
    /// So much of Xen's time.
    Real(Span),
}

impl CheckSpan {
    /// Real ns, of a domain at `tdf`.
    pub fn real_ns(self, tdf: Tdf) -> i64 {
        match self {
            Self::Real(span) => span.ns(),
            Self::Virtual(span) => narrow(tdf.to_real(span.ns().into())),
        }
    }

    /// Virtual ns, of a domain at `tdf`; at least 1.
    pub fn virtual_ns(self, tdf: Tdf) -> i64 {
        match self {
            Self::Virtual(span) => span.ns(),
            Self::Real(span) => narrow(tdf.to_virtual(span.ns().into())).max(1),
        }
    }
}

fn narrow(ns: i128) -> i64 {
    i64::try_from(ns).unwrap_or(i64::MAX)
}

/// Why a scenario cannot be run: each a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenarioError {
    /// The file.
    pub file: String,
    /// What is wrong in it.
    pub mistakes: Vec<String>,
}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.mistakes.iter().enumerate() {
            let end = if i + 1 < self.mistakes.len() { "\n" } else { "" };
            write!(f, "{}: {}{end}", self.file, mistake.trim_end())?;
        }
        Ok(())
    }
}

impl std::error::Error for ScenarioError {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScenario {
    name: String,
    #[serde(default)]
    sequential: bool,
    timeout: Option<Span>,
    #[serde(default)]
    domain: Vec<RawDomain>,
    #[serde(default)]
    check: Vec<RawCheck>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDomain {
    name: String,
    kind: String,
    tdf: Option<String>,
    expect_tdf: Option<String>,
    #[serde(default)]
    create: RawCreate,
    #[serde(default)]
    tsc_mode: TscMode,
    memory: Option<u32>,
    #[serde(default = "one")]
    vcpus: u32,
}

#[derive(Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum RawCreate {
    #[default]
    Tdf,
    Xl,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCheck {
    clocks: Vec<String>,
    for_virtual: Option<Span>,
    for_real: Option<Span>,
    #[serde(default = "twenty")]
    samples: u32,
}

const fn one() -> u32 {
    1
}

const fn twenty() -> u32 {
    20
}

/// Most samples of a check.
const MOST_SAMPLES: u32 = 10_000;

fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    // xl takes a number for an id.
    let number = name.bytes().all(|b| b.is_ascii_digit());
    name.len() <= 63 && name.bytes().all(allowed) && !number && !name.starts_with(['-', '.'])
}

/// Where the scenario `given` is: a name is one of those in `assets`, anything else is a path.
pub fn locate(given: &str, assets: &Path) -> PathBuf {
    if given.contains('/') || given.ends_with(".toml") {
        return PathBuf::from(given);
    }
    assets.join("scenarios").join(format!("{given}.toml"))
}

/// Reads the scenario in `path`; `tdf` replaces the factor of each domain for which one is set.
///
/// # Errors
/// All that is wrong with it.
pub fn load(path: &Path, tdf: Option<Tdf>) -> Result<Scenario, ScenarioError> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| ScenarioError {
        file: file.clone(),
        mistakes: vec![format!("cannot read the scenario: {e}")],
    })?;
    parse(&file, &text, path.parent().unwrap_or(Path::new("")), tdf)
}

fn parse(
    file: &str,
    text: &str,
    folder: &Path,
    tdf: Option<Tdf>,
) -> Result<Scenario, ScenarioError> {
    let wrong = |mistakes| ScenarioError { file: file.to_owned(), mistakes };
    let raw: RawScenario = toml::from_str(text).map_err(|e| wrong(vec![e.to_string()]))?;
    let mut mistakes = Vec::new();
    if !is_name(&raw.name) {
        mistakes.push(format!("name = {:?}: a name is letters, digits, - _ .", raw.name));
    }
    if raw.domain.is_empty() {
        mistakes.push("there is no [[domain]]".to_owned());
    }
    check_names(&raw, &mut mistakes);
    let mut domains = Vec::new();
    for domain in &raw.domain {
        domains.extend(domain_of(domain, &raw.check, folder, tdf, &mut mistakes));
    }
    if !mistakes.is_empty() {
        return Err(wrong(mistakes));
    }
    let RawScenario { name, sequential, timeout, .. } = raw;
    Ok(Scenario { name, sequential, timeout, domains })
}

fn check_names(raw: &RawScenario, mistakes: &mut Vec<String>) {
    let mut known = BTreeSet::new();
    for domain in &raw.domain {
        if !is_name(&domain.name) {
            let name = &domain.name;
            mistakes.push(format!(
                "domain {name:?}: a name is letters, digits, - _ . and no number, at most 63 long"
            ));
        }
        if !known.insert(domain.name.as_str()) {
            mistakes.push(format!("two domains are called {:?}", domain.name));
        }
    }
    for (i, check) in raw.check.iter().enumerate() {
        let at = i + 1;
        for name in check.clocks.iter().filter(|name| !known.contains(name.as_str())) {
            mistakes.push(format!("check {at}: there is no domain {name:?}"));
        }
        if check.clocks.is_empty() {
            mistakes.push(format!("check {at}: clocks = [] names no domain"));
        }
        if check.for_virtual.is_some() == check.for_real.is_some() {
            mistakes.push(format!("check {at}: give either for_virtual or for_real"));
        }
        if !(2..=MOST_SAMPLES).contains(&check.samples) {
            mistakes.push(format!(
                "check {at}: samples = {}: between 2 and {MOST_SAMPLES}",
                check.samples
            ));
        }
    }
}

fn domain_of(
    raw: &RawDomain,
    checks: &[RawCheck],
    folder: &Path,
    replacement: Option<Tdf>,
    mistakes: &mut Vec<String>,
) -> Option<Domain> {
    let before = mistakes.len();
    let name = &raw.name;
    let mut factor = |key: &str, text: &Option<String>| {
        let text = text.as_ref()?;
        let parsed = text.parse::<Tdf>();
        parsed.map_err(|e| mistakes.push(format!("domain {name:?}: {key} = {text:?}: {e}"))).ok()
    };
    let (set, expected) = (factor("tdf", &raw.tdf), factor("expect_tdf", &raw.expect_tdf));
    match (raw.create, &raw.tdf, &raw.expect_tdf) {
        (RawCreate::Tdf, Some(_), None) | (RawCreate::Xl, None, Some(_)) => {}
        (RawCreate::Tdf, ..) => mistakes
            .push(format!("domain {name:?}: needs tdf = \"…\"; expect_tdf is for create = \"xl\"")),
        (RawCreate::Xl, ..) => mistakes.push(format!(
            "domain {name:?}: with create = \"xl\" the factor is the hypervisor's: give expect_tdf \
             and no tdf"
        )),
    }
    let kind = match raw.kind.as_str() {
        "guest" => Kind::Guest,
        "linux" => Kind::Linux,
        path if path.contains('/') || path.ends_with(".cfg") => Kind::Config(folder.join(path)),
        other => {
            mistakes.push(format!(
                "domain {name:?}: kind = {other:?}: expected \"guest\", \"linux\" or the path of an \
                 xl configuration"
            ));
            Kind::Guest
        }
    };
    if !(1..=128).contains(&raw.vcpus) {
        mistakes.push(format!("domain {name:?}: vcpus = {}: between 1 and 128", raw.vcpus));
    }
    if raw.memory.is_some_and(|mib| !(1..=1 << 20).contains(&mib)) {
        mistakes.push(format!("domain {name:?}: memory is in MiB, between 1 and 1048576"));
    }
    let mut mine = checks.iter().filter(|check| check.clocks.contains(name));
    let check = match (mine.next(), mine.next()) {
        (Some(check), None) => Some(check),
        (None, _) => {
            mistakes.push(format!("domain {name:?}: no [[check]] names it"));
            None
        }
        (Some(_), Some(_)) => {
            mistakes.push(format!("domain {name:?}: two checks name it; one span fits one domain"));
            None
        }
    };
    if mistakes.len() > before {
        return None;
    }
    let check = check?;
    Some(Domain {
        name: name.clone(),
        kind,
        factor: match raw.create {
            RawCreate::Tdf => Factor::Set(replacement.or(set)?),
            RawCreate::Xl => Factor::Default(expected?),
        },
        tsc_mode: raw.tsc_mode,
        memory_mib: raw.memory,
        vcpus: raw.vcpus,
        span: match (check.for_virtual, check.for_real) {
            (Some(span), _) => CheckSpan::Virtual(span),
            (None, span) => CheckSpan::Real(span?),
        },
        samples: check.samples,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const GOOD: &str = r#"
        name = "clocks"
        [[domain]]
        name = "a"
        kind = "guest"
        tdf = "10"
        tsc_mode = "always_emulate"
        [[domain]]
        name = "b"
        kind = "linux"
        create = "xl"
        expect_tdf = "20"
        [[check]]
        clocks = ["a", "b"]
        for_real = "4 s"
    "#;

    /// The scenario in `text`.
    pub fn read(text: &str) -> Result<Scenario, ScenarioError> {
        parse("s.toml", text, Path::new("/scenarios"), None)
    }

    fn mistakes(text: &str) -> Vec<String> {
        read(text).unwrap_err().mistakes
    }

    #[test]
    fn a_scenario_is_read_whole() {
        let scenario = read(GOOD).unwrap();
        let [a, b] = &scenario.domains[..] else { panic!("two domains") };
        let tdf = |text: &str| text.parse::<Tdf>().unwrap();
        assert_eq!((a.factor, a.tsc_mode), (Factor::Set(tdf("10")), TscMode::AlwaysEmulate));
        assert_eq!((b.factor, b.kind.clone()), (Factor::Default(tdf("20")), Kind::Linux));
        assert_eq!((a.samples, a.span.real_ns(tdf("10"))), (20, 4_000_000_000));
        assert_eq!(a.span.virtual_ns(tdf("10")), 400_000_000);
        let text = GOOD.replace("\"linux\"", "\"../b.cfg\"");
        let scenario = read(&text).unwrap();
        assert_eq!(scenario.domains[1].kind, Kind::Config("/scenarios/../b.cfg".into()));
    }

    #[test]
    fn the_command_line_replaces_what_is_set_and_not_what_is_expected() {
        let tdf = "5/2".parse().unwrap();
        let scenario = parse("s", GOOD, Path::new(""), Some(tdf)).unwrap();
        assert_eq!(scenario.domains[0].factor, Factor::Set(tdf));
        assert_eq!(scenario.domains[1].factor.tdf().to_string(), "20");
    }

    #[test]
    fn all_mistakes_are_reported() {
        let bad = r#"
            name = "a b"
            [[domain]]
            name = "7"
            kind = "toaster"
            tdf = "0"
            vcpus = 0
            memory = 0
            [[domain]]
            name = "x"
            kind = "guest"
            create = "xl"
            [[check]]
            clocks = ["7", "nobody"]
            samples = 1
        "#;
        let mistakes = mistakes(bad).join("\n");
        for says in [
            "name = \"a b\"",
            "domain \"7\": a name",
            "kind = \"toaster\"",
            "tdf = \"0\": a TDF lies",
            "vcpus = 0",
            "memory",
            "give expect_tdf",
            "no [[check]] names it",
            "no domain \"nobody\"",
            "either for_virtual or for_real",
            "samples = 1",
        ] {
            assert!(mistakes.contains(says), "{says}: {mistakes}");
        }
    }

    #[test]
    fn unknown_keys_and_spans_without_units_are_refused_with_their_line() {
        for (from, to, says) in [
            ("tdf = \"10\"", "tdf = \"10\"\ncolour = 3", "colour"),
            ("\"4 s\"", "\"4\"", "it has no unit"),
            ("\"4 s\"", "4", "expected a string"),
            ("always_emulate", "sometimes", "sometimes"),
            ("tdf = \"10\"", "tdf = 10", "expected a string"),
            ("name = \"clocks\"", "name = \"clocks\"\nbogus = 1", "bogus"),
            ("for_real", "for_ever", "for_ever"),
        ] {
            let mistakes = mistakes(&GOOD.replace(from, to));
            assert!(mistakes[0].contains(says), "{says}: {mistakes:?}");
            assert!(mistakes[0].contains("line"), "{says}: {mistakes:?}");
        }
    }

    #[test]
    fn names_and_paths_of_scenarios_are_told_apart() {
        let assets = Path::new("/a");
        assert_eq!(locate("clocks", assets), Path::new("/a/scenarios/clocks.toml"));
        assert_eq!(locate("./clocks", assets), Path::new("./clocks"));
        assert_eq!(locate("x.toml", assets), Path::new("x.toml"));
    }

    #[test]
    fn the_scenarios_that_we_ship_are_right() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios"));
        let mut seen = 0;
        for entry in folder.read_dir().unwrap() {
            let path = entry.unwrap().path();
            let scenario = load(&path, None).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(path.file_stem().unwrap().to_str(), Some(scenario.name.as_str()));
            seen += 1;
        }
        assert!(seen >= 3);
    }
}
