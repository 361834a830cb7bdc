// SPDX-License-Identifier: MIT OR Apache-2.0
//! Scenarios: which domains exist, at which TDF, and what must hold.
//!
//! A scenario is complete: nothing that it does not say is taken from the machine it runs on, so
//! that the lab and a production host run the same thing. Every mistake is reported, not the first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tdf_abi::Tdf;

use crate::checks::{self, Check, Cost, Equality, Idle, Overload, Ping, Processing, Tcp};
use crate::network::Network;
use crate::units::Span;
use crate::wiring::{self, NetCheck, RawLink, RawSet};

/// A scenario that makes sense.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// The domains run one after another, not together.
    pub sequential: bool,
    /// Real time that a domain has; `None`: enough for its span.
    pub timeout: Option<Span>,
    /// The domains, each with its check.
    pub domains: Vec<Domain>,
    /// How they are linked, if they are.
    pub network: Option<Network>,
    /// What must hold in their network.
    pub checks: Vec<Check>,
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
    /// What its probe does.
    pub test: Test,
    /// For how long its clocks are watched.
    pub span: CheckSpan,
    /// How often in that time.
    pub samples: u32,
    /// How its factor changes meanwhile.
    pub changes: Option<Changes>,
    /// Hypercalls that each vCPU of a hostile one makes.
    pub calls: u64,
    /// More words for its kernel's command line.
    pub extra: Option<String>,
    /// Real time by which its timers may be late, besides what Xen needs: where the machine's processors
    /// are not its own.
    pub late: Option<Span>,
}

/// What the probe in a domain does.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Test {
    /// Reads its clocks now and then.
    #[default]
    Clocks,
    /// Tries each of Xen's time paths once.
    Paths,
    /// Watches its clocks without a pause while its factor changes.
    Changes,
    /// Arms timers, and the factor changes before they fire.
    Armed,
    /// Asks Xen for whatever it must not give.
    Hostile,
    /// Sets a watchdog and lets it bite.
    WatchdogBite,
    /// Runs the reference trace of the switch's model.
    Model,
    /// It has none: it is a switch or a host in a network.
    Net,
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clocks => "clocks",
            Self::Paths => "paths",
            Self::Changes => "changes",
            Self::Armed => "armed",
            Self::Hostile => "hostile",
            Self::WatchdogBite => "watchdog-bite",
            Self::Model => "model",
            Self::Net => "net",
        })
    }
}

/// Changes of a domain's factor while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// How many.
    pub count: u32,
    /// The factors that it gets, at random, no one twice in a row; at least two.
    pub factors: Vec<Tdf>,
    /// Mean real time between two changes.
    pub every: Span,
    /// Mean real time that one may take with all that the toolstack does: so long does a probe watch.
    pub within: Span,
}

impl Changes {
    /// The virtual time for which a probe must watch, expected from how long a change may take.
    pub fn span_ns(&self) -> i64 {
        let each = |tdf: &Tdf| tdf.to_virtual(self.within.ns().into());
        let sum: i128 = self.factors.iter().map(each).sum();
        let all = sum * i128::from(self.count) / self.factors.len().max(1) as i128;
        narrow(all).max(1_000_000_000)
    }

    /// The factor at which time is shortest: what is left of a probe's span passes at it.
    pub fn fastest(&self) -> Tdf {
        let speed = |tdf: &&Tdf| u64::from(tdf.den()) * 1_000_000_000 / u64::from(tdf.num());
        self.factors.iter().max_by_key(speed).copied().unwrap_or(Tdf::ONE)
    }
}

/// What runs in a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Our own kernel.
    Guest,
    /// An unmodified PV Linux with the lab's initramfs.
    Linux,
    /// The same as a PVH guest, which needs a processor with hardware virtualization.
    Pvh,
    /// Whatever this xl configuration says.
    Config(PathBuf),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guest => "guest",
            Self::Linux => "linux",
            Self::Pvh => "pvh",
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
    /// For whoever makes the machine: its processors agree on their TSC, and Xen takes the time from it.
    #[serde(default, rename = "invariant_tsc")]
    _invariant_tsc: bool,
    timeout: Option<Span>,
    #[serde(default)]
    domain: Vec<RawDomain>,
    #[serde(default)]
    check: Vec<RawCheck>,
    #[serde(default)]
    change: Vec<RawChange>,
    #[serde(default)]
    link: Vec<RawLink>,
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
    #[serde(default)]
    test: Test,
    calls: Option<u64>,
    extra: Option<String>,
    late: Option<Span>,
    role: Option<Role>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Role {
    Switch,
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
    clocks: Option<Vec<String>>,
    for_virtual: Option<Span>,
    for_real: Option<Span>,
    #[serde(default = "twenty")]
    samples: u32,
    name: Option<String>,
    tdf: Option<String>,
    #[serde(default)]
    set: Vec<RawSet>,
    ping: Option<Ping>,
    tcp: Option<Tcp>,
    overload: Option<Overload>,
    processing: Option<Processing>,
    equality: Option<Equality>,
    cost: Option<Cost>,
    idle: Option<Idle>,
}

impl RawCheck {
    fn names(&self, domain: &str) -> bool {
        self.clocks.iter().flatten().any(|name| name == domain)
    }

    /// What it does in a network.
    fn kinds(&self) -> Vec<checks::Kind> {
        let kinds = [
            self.ping.clone().map(checks::Kind::Ping),
            self.tcp.clone().map(checks::Kind::Tcp),
            self.overload.clone().map(checks::Kind::Overload),
            self.processing.clone().map(checks::Kind::Processing),
            self.equality.clone().map(checks::Kind::Equality),
            self.cost.clone().map(checks::Kind::Cost),
            self.idle.clone().map(checks::Kind::Idle),
        ];
        kinds.into_iter().flatten().collect()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawChange {
    domains: Vec<String>,
    count: u32,
    factors: Vec<String>,
    every: Span,
    within: Option<Span>,
}

const fn one() -> u32 {
    1
}

const fn twenty() -> u32 {
    20
}

/// Most samples of a check.
const MOST_SAMPLES: u32 = 10_000;
/// So many times the mean between two changes may a change take where nothing else is said: the
/// toolstack's own time and the luck of the draw add to it.
const USUAL_WITHIN: i64 = 4;
/// Latest timer that a scenario may allow, ns.
const MOST_LATE_NS: i64 = 4_000_000_000;
/// Most changes of a domain's factor.
const MOST_CHANGES: u32 = 1_000_000;

/// Hypercalls of each vCPU of a hostile domain, where nothing else is said …
const USUAL_CALLS: u64 = 100_000;
/// … and at most.
const MOST_CALLS: u64 = 1_000_000_000;

/// What the command line says instead of the scenario.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The factor of each domain for which one is set.
    pub tdf: Option<Tdf>,
    /// How often the factor of each domain changes whose factor changes at all.
    pub changes: Option<u32>,
}

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

/// Reads the scenario in `path`.
///
/// # Errors
/// All that is wrong with it.
pub fn load(path: &Path, instead: Overrides) -> Result<Scenario, ScenarioError> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| ScenarioError {
        file: file.clone(),
        mistakes: vec![format!("cannot read the scenario: {e}")],
    })?;
    parse(&file, &text, path.parent().unwrap_or(Path::new("")), instead)
}

fn parse(
    file: &str,
    text: &str,
    folder: &Path,
    instead: Overrides,
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
    let changes = changes_of(&raw, instead.changes, &mut mistakes);
    let mut domains = Vec::new();
    for domain in &raw.domain {
        let mine = changes.get(domain.name.as_str());
        domains.extend(domain_of(domain, &raw.check, mine, folder, instead.tdf, &mut mistakes));
    }
    let (network, checks) = network_of(&raw, &domains, &mut mistakes);
    if !mistakes.is_empty() {
        return Err(wrong(mistakes));
    }
    let RawScenario { name, sequential, timeout, .. } = raw;
    Ok(Scenario { name, sequential, timeout, domains, network, checks })
}

/// How the domains are linked, and what must hold between them.
fn network_of(
    raw: &RawScenario,
    domains: &[Domain],
    mistakes: &mut Vec<String>,
) -> (Option<Network>, Vec<Check>) {
    let hosts = domains.iter().any(|domain| domain.test == Test::Net);
    if raw.link.is_empty() && !hosts {
        for (i, check) in raw.check.iter().enumerate().filter(|(_, c)| !c.kinds().is_empty()) {
            let kind = check.kinds()[0].name();
            mistakes.push(format!("check {}: {kind} needs a [[link]]", i + 1));
        }
        return (None, Vec::new());
    }
    if domains.iter().any(|domain| domain.test != Test::Net) || raw.sequential {
        mistakes.push(
            "a scenario with a [[link]] has switches and hosts only, and all of them at once"
                .to_owned(),
        );
    }
    if domains.windows(2).any(|pair| pair[0].factor != pair[1].factor) {
        mistakes.push("all domains of a network have one factor; a check can change it".to_owned());
    }
    let network = wiring::network_of(&raw.link, domains, mistakes);
    let mut checks = Vec::new();
    for (i, check) in raw.check.iter().enumerate() {
        let RawCheck { name, tdf, set, .. } = check;
        let given = NetCheck { name, tdf, set, kinds: check.kinds() };
        checks.extend(given.check(i + 1, &network, mistakes));
    }
    (Some(network), checks)
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
        for name in check.clocks.iter().flatten().filter(|name| !known.contains(name.as_str())) {
            mistakes.push(format!("check {at}: there is no domain {name:?}"));
        }
        let Some(clocks) = &check.clocks else {
            if check.kinds().is_empty() {
                mistakes.push(format!("check {at}: it says neither clocks nor what else"));
            }
            if check.for_virtual.is_some() || check.for_real.is_some() {
                mistakes.push(format!("check {at}: for_virtual and for_real are for clocks"));
            }
            continue;
        };
        if clocks.is_empty() {
            mistakes.push(format!("check {at}: clocks = [] names no domain"));
        }
        if !check.kinds().is_empty() {
            mistakes.push(format!(
                "check {at}: clocks and {}: of one kind only",
                check.kinds()[0].name()
            ));
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

/// What changes, by the name of the domain.
fn changes_of<'a>(
    raw: &'a RawScenario,
    count: Option<u32>,
    mistakes: &mut Vec<String>,
) -> BTreeMap<&'a str, Changes> {
    let mut all = BTreeMap::new();
    for (i, change) in raw.change.iter().enumerate() {
        let at = i + 1;
        let mut factors = Vec::new();
        for text in &change.factors {
            match text.parse::<Tdf>() {
                Ok(tdf) if factors.contains(&tdf) => {
                    mistakes.push(format!("change {at}: factors: {text:?} is there twice"));
                }
                Ok(tdf) => factors.push(tdf),
                Err(e) => mistakes.push(format!("change {at}: factors: {text:?}: {e}")),
            }
        }
        if change.factors.len() < 2 {
            mistakes.push(format!("change {at}: factors: a change needs two at least"));
        }
        let count = count.unwrap_or(change.count);
        if !(1..=MOST_CHANGES).contains(&count) {
            mistakes.push(format!("change {at}: count = {count}: between 1 and {MOST_CHANGES}"));
        }
        if change.domains.is_empty() {
            mistakes.push(format!("change {at}: domains = [] names no domain"));
        }
        let every = change.every;
        let usual = || Span::from_ns(every.ns().saturating_mul(USUAL_WITHIN));
        let within = change.within.or_else(usual).unwrap_or(every);
        if within < every {
            mistakes.push(format!("change {at}: within is no less than every"));
        }
        for name in &change.domains {
            if !raw.domain.iter().any(|domain| domain.name == *name) {
                mistakes.push(format!("change {at}: there is no domain {name:?}"));
            }
            let changes = Changes { count, factors: factors.clone(), every, within };
            if all.insert(name.as_str(), changes).is_some() {
                mistakes.push(format!("change {at}: domain {name:?} has its changes already"));
            }
        }
    }
    all
}

fn domain_of(
    raw: &RawDomain,
    checks: &[RawCheck],
    changes: Option<&Changes>,
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
        "pvh" => Kind::Pvh,
        path if path.contains('/') || path.ends_with(".cfg") => Kind::Config(folder.join(path)),
        other => {
            mistakes.push(format!(
                "domain {name:?}: kind = {other:?}: expected \"guest\", \"linux\", \"pvh\" or the \
                 path of an xl configuration"
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
    let test = match (raw.role, raw.test) {
        (Some(Role::Switch), Test::Clocks) if kind == Kind::Guest => Test::Net,
        (Some(Role::Switch), _) => {
            mistakes
                .push(format!("domain {name:?}: role = \"switch\" is for our kernel, and no test"));
            Test::Net
        }
        (None, Test::Net) if kind != Kind::Linux => {
            mistakes.push(format!("domain {name:?}: test = \"net\" is for kind = \"linux\""));
            Test::Net
        }
        (None, test) => test,
    };
    let mut mine = checks.iter().filter(|check| check.names(name));
    let watched = match (mine.next(), mine.next(), changes) {
        (Some(check), None, None) => match (check.for_virtual, check.for_real) {
            (Some(span), _) => Some((CheckSpan::Virtual(span), check.samples)),
            (None, span) => span.map(|span| (CheckSpan::Real(span), check.samples)),
        },
        (None, _, Some(changes)) => match Span::from_ns(changes.span_ns()) {
            Some(span) => Some((CheckSpan::Virtual(span), twenty())),
            None => {
                mistakes.push(format!(
                    "domain {name:?}: its changes would take more than a week of its time: fewer \
                     of them, closer to each other, or no such small factors"
                ));
                None
            }
        },
        (Some(_), _, Some(_)) => {
            mistakes.push(format!(
                "domain {name:?}: a [[check]] and a [[change]] name it; a check is for a factor \
                 that does not change"
            ));
            None
        }
        (None, ..) if test == Test::Net => Some((CheckSpan::Virtual(Span::SECOND), twenty())),
        (None, ..) => {
            mistakes.push(format!("domain {name:?}: no [[check]] names it"));
            None
        }
        (Some(_), Some(_), None) => {
            mistakes.push(format!("domain {name:?}: two checks name it; one span fits one domain"));
            None
        }
    };
    let mine_too = checks.iter().any(|check| check.names(name)) || changes.is_some();
    let own = matches!(kind, Kind::Config(_));
    match test {
        Test::Net if mine_too => {
            mistakes.push(format!("domain {name:?}: clocks of a network's domains are not checked"))
        }
        Test::Changes | Test::Armed if changes.is_none() => {
            mistakes.push(format!("domain {name:?}: test = \"{test}\", but no [[change]] names it"))
        }
        Test::Clocks | Test::Paths | Test::Hostile | Test::Model if changes.is_some() && !own => {
            mistakes
                .push(format!("domain {name:?}: a [[change]] names it: write test = \"changes\""))
        }
        Test::Armed | Test::Hostile | Test::WatchdogBite | Test::Model
            if matches!(kind, Kind::Linux | Kind::Pvh) =>
        {
            mistakes.push(format!(
                "domain {name:?}: test = \"{}\" is for our kernel: Linux cannot try it",
                raw.test
            ))
        }
        _ => {}
    }
    match raw.calls {
        Some(_) if raw.test != Test::Hostile => {
            mistakes.push(format!("domain {name:?}: calls = … is for test = \"hostile\""))
        }
        Some(calls) if !(1..=MOST_CALLS).contains(&calls) => {
            mistakes.push(format!("domain {name:?}: calls = {calls}: between 1 and {MOST_CALLS}"))
        }
        _ => {}
    }
    if raw.extra.is_some() && own {
        mistakes.push(format!("domain {name:?}: extra belongs in its own configuration"));
    }
    let waits = (&kind, test) == (&Kind::Guest, Test::Changes);
    if raw.late.is_some_and(|late| !waits || late.ns() > MOST_LATE_NS) {
        mistakes.push(format!(
            "domain {name:?}: late is for our kernel's test = \"changes\", and at most 4 s"
        ));
    }
    if mistakes.len() > before {
        return None;
    }
    let (span, samples) = watched?;
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
        test,
        span,
        samples,
        changes: changes.cloned(),
        calls: raw.calls.unwrap_or(USUAL_CALLS),
        extra: raw.extra.clone(),
        late: raw.late,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::network::{End, Via};

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
        parse("s.toml", text, Path::new("/scenarios"), Overrides::default())
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
        let instead = Overrides { tdf: Some(tdf), changes: None };
        let scenario = parse("s", GOOD, Path::new(""), instead).unwrap();
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

    const CHANGING: &str = r#"
        name = "changes"
        [[domain]]
        name = "a"
        kind = "guest"
        tdf = "10"
        vcpus = 2
        test = "changes"
        [[change]]
        domains = ["a"]
        count = 1000
        factors = ["1/1000", "1", "5/2"]
        every = "3 ms"
    "#;

    #[test]
    fn changes_are_read_and_give_the_span() {
        let a = &read(CHANGING).unwrap().domains[0];
        let changes = a.changes.as_ref().unwrap();
        assert_eq!((a.vcpus, a.test, changes.count), (2, Test::Changes, 1000));
        assert_eq!(changes.fastest().to_string(), "1/1000");
        // On average 3 ms take (3 s + 3 ms + 1.2 ms)/3 of the guest's time.
        assert_eq!(changes.span_ns(), 4 * (3_000_000_000 + 3_000_000 + 1_200_000) / 3 * 1000);
        assert_eq!(a.span.virtual_ns(Tdf::ONE), changes.span_ns());
        let instead = Overrides { tdf: None, changes: Some(7) };
        let few = parse("s", CHANGING, Path::new(""), instead).unwrap();
        assert_eq!(few.domains[0].changes.as_ref().map(|c| c.count), Some(7));
    }

    #[test]
    fn changes_that_make_no_sense_are_refused() {
        for (from, to, says) in [
            ("count = 1000", "count = 0", "count = 0: between"),
            ("\"1\", \"5/2\"", "\"2.5\", \"5/2\"", "\"5/2\" is there twice"),
            ("\"1/1000\", \"1\", \"5/2\"", "\"2\"", "needs two"),
            ("\"5/2\"]", "\"0\"]", "\"0\": a TDF lies"),
            ("[\"a\"]", "[\"a\", \"b\"]", "there is no domain \"b\""),
            ("[\"a\"]", "[\"a\", \"a\"]", "has its changes already"),
            ("[\"a\"]", "[]", "no [[change]] names it"),
            ("test = \"changes\"", "", "write test = \"changes\""),
            ("test = \"changes\"", "test = \"changes\"\nlate = \"5 s\"", "at most 4 s"),
            ("3 ms", "1 s", "more than a week"),
            ("3 ms\"", "3 ms\"\nwithin = \"2 ms\"", "no less than every"),
            (
                "[[change]]",
                "[[check]]\nclocks = [\"a\"]\nfor_real = \"1 s\"\n[[change]]",
                "a [[check]] and a [[change]] name it",
            ),
        ] {
            let mistakes = mistakes(&CHANGING.replace(from, to)).join("\n");
            assert!(mistakes.contains(says), "{says}: {mistakes}");
        }
        let linux = GOOD.replace("kind = \"linux\"", "kind = \"linux\"\ntest = \"watchdog-bite\"");
        assert!(mistakes(&linux)[0].contains("Linux cannot"));
    }

    const NETWORK: &str = r#"
        name = "net"
        [[domain]]
        name = "s"
        kind = "guest"
        role = "switch"
        tdf = "10"
        [[domain]]
        name = "a"
        kind = "linux"
        test = "net"
        tdf = "10"
        [[domain]]
        name = "b"
        kind = "linux"
        test = "net"
        tdf = "10"
        [[link]]
        domain = "a"
        switch = "s"
        address = "10.0.0.1/24"
        delay = "1 ms"
        ingress = { rate = "1 Gbit/s", framing = "ethernet" }
        [[link]]
        domain = "b"
        switch = "s"
        via = "netfront"
        address = "10.0.0.2/24"
        [[check]]
        ping = { from = "a", to = "b" }
        tdf = "5"
        set = [{ link = "b", rate = "10 Mbit/s" }]
    "#;

    #[test]
    fn a_network_is_read_with_what_its_checks_change() {
        let scenario = read(NETWORK).unwrap();
        let network = scenario.network.as_ref().unwrap();
        let [a, b] = &network.links[..] else { panic!("two links") };
        assert_eq!(a.port.egress.delay, switch_model::Span::ms(1));
        assert_eq!(a.port.ingress.framing, switch_model::Framing::ETHERNET);
        assert_eq!(b.end, End::Switch("s".to_owned(), Via::Netfront));
        let check = &scenario.checks[0];
        assert_eq!((check.tdf, check.settings[0]), (Some("5".parse().unwrap()), a.port));
        assert_eq!(check.settings[1].egress.rate, Some(switch_model::Rate::mbit(10)));
        let path = network.path("a", "b", &check.settings).unwrap();
        let specs: Vec<_> = path.iter().map(|hop| hop.spec).collect();
        assert_eq!(specs, [check.settings[0].ingress, check.settings[1].egress]);
        assert_eq!(network.path("a", "nobody", &check.settings), None);
    }

    #[test]
    fn networks_that_make_no_sense_are_refused() {
        for (from, to, says) in [
            ("delay = \"1 ms\"", "delay = \"1\"", "link of \"a\": \"1\": the unit is missing"),
            ("delay = \"1 ms\"", "dealy = \"1 ms\"", "dealy"),
            ("\"1 Gbit/s\"", "\"fast\"", "ingress: \"fast\""),
            ("10.0.0.2/24", "10.0.0.1/24", "is another's, too"),
            ("10.0.0.2/24", "10.0.0.2", "expected one like"),
            ("from = \"a\"", "from = \"s\"", "are not two hosts"),
            ("from = \"a\"", "from = \"b\"", "are not two hosts"),
            ("link = \"b\"", "link = \"s\"", "no domain with a link"),
            ("rate = \"10 Mbit/s\"", "rate = \"10\"", "set of \"b\""),
            ("role = \"switch\"", "", "no [[check]] names it"),
            ("test = \"net\"", "", "no [[check]] names it"),
            ("kind = \"guest\"", "kind = \"linux\"", "role = \"switch\" is for our kernel"),
            ("tdf = \"10\"", "tdf = \"7\"", "one factor"),
            ("tdf = \"5\"", "tdf = \"0\"", "check 1: tdf = \"0\""),
            ("ping = {", "pong = {", "pong"),
            ("ping = {", "tcp = { for_virtual = \"1.5 s\",", "whole seconds"),
            ("ping = {", "clocks = [\"a\"]\nping = {", "of one kind only"),
            ("via = \"netfront\"", "via = \"carrier pigeon\"", "carrier pigeon"),
            ("switch = \"s\"", "switch = \"a\"", "is no other switch"),
            ("switch = \"s\"", "", "give either switch or bridge"),
        ] {
            let text = NETWORK.replacen(from, to, 1);
            assert_ne!(text, NETWORK, "{from}");
            let mistakes = mistakes(&text).join("\n");
            assert!(mistakes.contains(says), "{says}: {mistakes}");
        }
        let alone = GOOD.replace(
            "for_real = \"4 s\"",
            "for_real = \"4 s\"\n[[check]]\nping = { from = \"a\", to = \"b\" }",
        );
        assert!(mistakes(&alone)[0].contains("ping needs a [[link]]"));
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
            let scenario = load(&path, Overrides::default()).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(path.file_stem().unwrap().to_str(), Some(scenario.name.as_str()));
            seen += 1;
        }
        assert!(seen >= 3);
    }
}
