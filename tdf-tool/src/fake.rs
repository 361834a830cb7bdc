// SPDX-License-Identifier: MIT OR Apache-2.0
//! A whole machine in memory: a hypervisor with dilated domains, xl, consoles, and guests whose
//! probes read their clocks, rightly or wrongly. Its time passes only when somebody waits.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tdf_abi::{GetTdf, TDF_ABI_VERSION, TDF_ACTIVE, TDF_AT_REAL, TDF_REVEAL, TDF_WALL_ANCHOR, Tdf};
use tdf_xen::reading::Reading;

use crate::dom0::{ConsoleEvent, ConsoleId, Dom0, ToolOutput};
use crate::xen::answering::Request;
use crate::xen::{Control, DomId, Errno, Hypervisor, Op};
use crate::xlcfg::Config;

mod network;
pub use network::{FakeNetwork, NetFault};

const INTERFACE: u32 = 0x17;
/// What a command of the toolstack costs.
const TOOL_NS: i64 = 20_000_000;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Stock Xen.
    NoPatch,
    /// `xl create` fails.
    Create,
    /// `xl create` fails and leaves a domain.
    CreateHalf,
    /// `set_tdf` fails.
    Set(i32),
    /// `set_tdf` fails with this for the domain with this id.
    SetOf(u16, i32),
    /// The domain with this id cannot be paused.
    Pause(u16),
    /// `set_tdf` succeeds and does nothing.
    SetIgnored,
    /// `xl unpause` fails.
    Unpause,
    /// xenstore takes nothing.
    StoreFull,
    /// There is no xenconsoled.
    NoConsole,
    /// Virtual time jumps by 3 ns a second after the start of the machine.
    Jump,
}

/// How a guest behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// Its clocks are right and it says so.
    #[default]
    Good,
    /// Its `tsc` (or CLOCK_REALTIME) runs 1 ppm fast, and its own judge overlooks it.
    Fast,
    /// It never reads `timer` (or `nanosleep`).
    Missing,
    /// It says FAILURE.
    SaysFailure,
    /// It prints nothing, for ever.
    Mute,
    /// It crashes half way.
    Crashes,
    /// It floods its console.
    Floods,
}

/// A domain.
#[derive(Debug)]
pub struct FakeDomain {
    /// Its name.
    pub name: String,
    id: DomId,
    uuid: u16,
    config: String,
    /// The whole configuration.
    text: String,
    tdf: Tdf,
    active: bool,
    reveal: bool,
    real0: i64,
    virt0: i64,
    /// What its wall clock shows when its time is 0.
    wall0: i64,
    /// How often it is paused, and since when.
    pub paused: u32,
    paused_at: i64,
    /// Its factor when it first ran.
    pub started_at: Option<Tdf>,
    script: Vec<(i64, Vec<u8>)>,
    /// The last of the script is said, and the domain ends, when its time is this.
    finale: Option<i64>,
    down: Option<(i64, u8)>,
}

/// The machine.
pub struct Machine {
    real: i64,
    /// The hypervisor's default factor.
    pub default: Tdf,
    /// Its domains.
    pub domains: Vec<FakeDomain>,
    next_id: u16,
    /// What goes wrong.
    pub fault: Option<Fault>,
    /// `xl destroy` fails.
    pub indestructible: bool,
    /// Somebody presses Ctrl-C after it was asked so often.
    pub interrupt_after: Option<u32>,
    /// Successful `set_tdf`s.
    pub sets: u32,
    /// A domain ran at TDF 1.
    pub ran_undilated: bool,
    /// How guests behave, by name.
    pub behaviours: HashMap<String, Behaviour>,
    /// How domains end, one after another, 1 s after they began.
    pub ends: Vec<u8>,
    /// All domains are gone from this moment on.
    pub vanish_at: Option<i64>,
    /// What dom0 wrote to xenstore.
    pub store: HashMap<String, String>,
    /// The event log.
    pub log: Vec<String>,
    /// Files written.
    pub files: HashMap<String, String>,
    consoles: Vec<DomId>,
    /// The network between its domains.
    pub network: FakeNetwork,
    /// Bridges of dom0.
    pub bridges: Vec<String>,
}

impl Machine {
    /// A machine in order.
    pub fn control() -> Control<Self> {
        Control::new(Self {
            real: 1_000_000_007,
            default: Tdf::ONE,
            domains: Vec::new(),
            next_id: 1,
            fault: None,
            indestructible: false,
            interrupt_after: None,
            sets: 0,
            ran_undilated: false,
            behaviours: HashMap::new(),
            ends: Vec::new(),
            vanish_at: None,
            store: HashMap::new(),
            log: Vec::new(),
            files: HashMap::new(),
            consoles: Vec::new(),
            network: FakeNetwork::default(),
            bridges: Vec::new(),
        })
    }

    fn ip(&mut self, args: &[&str]) -> Result<String, String> {
        let at = |bridges: &[String], name: &str| bridges.iter().position(|b| b == name);
        match args {
            ["link", "show", "dev", name] => {
                at(&self.bridges, name).map(|_| String::new()).ok_or("no such device".to_owned())
            }
            ["link", "add", "name", name, "type", "bridge"] => {
                self.bridges.push((*name).to_owned());
                Ok(String::new())
            }
            ["link", "set", "dev", _, "up"] => Ok(String::new()),
            ["link", "delete", "dev", name] => {
                let at = at(&self.bridges, name).ok_or("no such device")?;
                self.bridges.remove(at);
                Ok(String::new())
            }
            other => panic!("ip {other:?}"),
        }
    }

    /// Its real time.
    pub const fn now_ns(&self) -> i64 {
        self.real
    }

    /// The domain called `name`.
    pub fn domain(&self, name: &str) -> Option<&FakeDomain> {
        self.domains.iter().find(|domain| domain.name == name)
    }

    /// The domain called `name` goes, and xl makes it anew, as after a reboot.
    pub fn remake(&mut self, name: &str) -> DomId {
        let id = DomId(self.next_id);
        self.next_id += 1;
        let domain = self.domains.iter_mut().find(|d| d.name == name).expect("it is there");
        (domain.id, domain.tdf, domain.active) = (id, self.default, false);
        domain.reveal = false;
        id
    }

    fn xenstore(&mut self, program: &str, args: &[&str]) -> Result<String, String> {
        match (program, args) {
            ("xenstore-read", [path]) => {
                if let Some(rest) = path.strip_prefix("/local/domain/") {
                    let (id, key) = rest.split_once('/').expect("a path");
                    let domain = self.domains.iter().find(|domain| domain.id.to_string() == id);
                    return match (key, domain) {
                        ("console/tty", _) if self.fault != Some(Fault::NoConsole) => {
                            Ok(format!("/dev/pts/{id}\n"))
                        }
                        ("vm", Some(domain)) => {
                            Ok(format!("/vm/01234567-0000-0000-0000-{:012x}\n", domain.uuid))
                        }
                        (key, Some(_)) if key.starts_with("data/") => {
                            self.store.get(*path).cloned().ok_or("couldn't read path".to_owned())
                        }
                        _ => Err("couldn't read path".to_owned()),
                    };
                }
                self.store.get(*path).cloned().ok_or("couldn't read path".to_owned())
            }
            ("xenstore-write", [path, value]) if self.fault != Some(Fault::StoreFull) => {
                self.store.insert((*path).to_owned(), (*value).to_owned());
                self.network.asked(&mut self.store, path, value);
                Ok(String::new())
            }
            ("xenstore-write", _) => Err("no space".to_owned()),
            ("xenstore-ls", ["-f", folder]) => Ok(self
                .store
                .iter()
                .filter(|(path, _)| path.starts_with(folder))
                .map(|(path, value)| format!("{path} = \"{value}\"\n"))
                .collect()),
            ("xenstore-rm", [path]) => {
                self.store.remove(*path).map(|_| String::new()).ok_or("no such path".to_owned())
            }
            other => panic!("{other:?}"),
        }
    }

    fn create(&mut self, args: &[&str]) -> Result<String, String> {
        let ["-p", "-f", path, rest @ ..] = args else { panic!("xl create {args:?}") };
        let text = self.files.get(*path).cloned().unwrap_or_else(|| "name = 'web'".to_owned());
        let mut config = Config::parse(path, &text).expect("xl understands it");
        for arg in rest.iter().filter(|arg| arg.contains('=')) {
            config.append("args", arg).expect("xl understands it");
        }
        if self.fault == Some(Fault::Create) {
            return Err("libxl: error: no memory".to_owned());
        }
        let value = |key| config.get(key).and_then(|s| s.value.text()).unwrap_or("").to_owned();
        self.domains.push(FakeDomain {
            name: value("name"),
            id: DomId(self.next_id),
            uuid: self.next_id,
            config: value("extra"),
            text,
            tdf: self.default,
            active: self.default != Tdf::ONE,
            reveal: false,
            real0: self.real,
            virt0: self.real,
            wall0: 1_700_000_000_000_000_000,
            paused: 0,
            paused_at: 0,
            started_at: None,
            script: Vec::new(),
            finale: None,
            down: None,
        });
        self.next_id += 1;
        match self.fault {
            Some(Fault::CreateHalf) => Err("libxl: error: half way".to_owned()),
            _ => Ok(String::new()),
        }
    }

    fn unpause(&mut self, name: &str) -> Result<String, String> {
        if self.fault == Some(Fault::Unpause) {
            return Err("libxl: error".to_owned());
        }
        let behaviour = self.behaviours.get(name).copied().unwrap_or_default();
        let real = self.real;
        let domain = self.domains.iter_mut().find(|d| d.name == name).ok_or("no such domain")?;
        domain.started_at = Some(domain.tdf);
        self.ran_undilated |= domain.tdf == Tdf::ONE;
        match self.network.boot(&mut self.store, &domain.text, domain.id, name) {
            Some(line) => domain.script.push((real + 5_000_000, line)),
            None => domain.boot(real, behaviour),
        }
        if !self.ends.is_empty() {
            domain.down = Some((real + 1_000_000_000, self.ends.remove(0)));
        }
        Ok(String::new())
    }

    fn xl(&mut self, args: &[&str]) -> Result<String, String> {
        let by_id = |domains: &[FakeDomain], id: &str| {
            domains.iter().position(|d| d.id.to_string() == id).ok_or("no such domain".to_owned())
        };
        match args {
            ["create", rest @ ..] => self.create(rest),
            ["unpause", name] => self.unpause(name),
            ["domid", name] => {
                let domain = self.domain(name).ok_or("no such domain")?;
                Ok(format!("{}\n", domain.id))
            }
            ["domname", "0"] => Ok("Domain-0\n".to_owned()),
            ["domname", id] => {
                by_id(&self.domains, id).map(|at| format!("{}\n", self.domains[at].name))
            }
            ["list"] => {
                let mut out = "Name ID Mem VCPUs State Time(s)\n".to_owned();
                out.push_str("Domain-0            0   512     1     r-----      12.3\n");
                for domain in &self.domains {
                    let FakeDomain { name, id, .. } = domain;
                    out.push_str(&format!("{name}   {id}   16     1     -b----       0.1\n"));
                }
                Ok(out)
            }
            ["destroy", id] => {
                let at = by_id(&self.domains, id)?;
                if self.indestructible {
                    return Err("libxl: error: it resists".to_owned());
                }
                self.domains.remove(at);
                Ok(String::new())
            }
            other => panic!("xl {other:?}"),
        }
    }
}

impl FakeDomain {
    /// Whether it runs, or has run.
    pub const fn running(&self) -> bool {
        self.started_at.is_some()
    }

    fn virt(&self, real: i64) -> i64 {
        if !self.active {
            return real;
        }
        self.virt0 + self.tdf.to_virtual((real - self.real0).into()) as i64
    }

    /// Moves the end of its script to where its factor puts it.
    fn settle(&mut self) {
        let Some(finale) = self.finale else { return };
        let due = match self.active {
            true => self.real0 + self.tdf.to_real((finale - self.virt0).into()) as i64,
            false => finale,
        };
        self.down = Some((due + 1000, 0));
        if let Some(last) = self.script.last_mut() {
            last.0 = due;
        }
    }

    /// A domain that tries paths, or watches its clocks: what it says at the end.
    fn tries(&mut self, real: i64, span: i64, behaviour: Behaviour) {
        let value = i64::from(behaviour == Behaviour::Fast);
        let has = |word: &str| self.config.contains(word);
        let plain = |rows: &[(&'static str, &'static str)]| {
            rows.iter().map(|(path, probe)| (*path, (*probe).to_owned())).collect()
        };
        let wanted: Vec<(&str, String)> = if has("test=watchdog-bite") {
            self.down = match behaviour {
                Behaviour::SaysFailure => None,
                Behaviour::Crashes => Some((real + 9_000_000, 3)),
                _ => Some((real + 9_000_000, 4)),
            };
            plain(&[("P13", "unpetted")])
        } else if has("test=paths") {
            let each = ["P1", "P4", "P6", "P8", "P9", "P11", "P12", "P16", "P18", "P20"];
            let on = |vcpu| each.map(|path| (path, format!("any@{vcpu}")));
            on(0).into_iter().chain([("P13", "any".to_owned())]).chain(on(1)).collect()
        } else if has("console=hvc0") {
            plain(&crate::probe::CHANGES)
        } else if has("test=armed") {
            plain(&crate::watch::GUEST_ARMED)
        } else {
            plain(&crate::watch::GUEST_CHANGES)
        };
        let missing = usize::from(behaviour == Behaviour::Missing);
        let mut text = String::new();
        for (path, probe) in wanted.iter().skip(missing) {
            text.push_str(&format!(
                "tdf-path path={path} probe={probe} lo=0 value={value} hi=0\r\n"
            ));
        }
        if self.down.is_some() {
            self.script.push((real + 5_000_000, text.into_bytes()));
            return;
        }
        let result = if behaviour == Behaviour::SaysFailure { "FAILURE" } else { "SUCCESS" };
        text.push_str(&format!("Test result: {result}\r\n"));
        self.script.push((real + 5_000_000, b"booting\r\ntdf-begin\r\n".to_vec()));
        self.finale = Some(self.virt(real) + span);
        self.script.push((i64::MAX, text.into_bytes()));
        self.settle();
    }

    /// Writes down what its probe will say and when.
    fn boot(&mut self, real: i64, behaviour: Behaviour) {
        let parameter = |key: &str| {
            let words = self.config.split(' ').filter_map(|word| word.split_once('='));
            words.into_iter().find(|(k, _)| *k == key).and_then(|(_, v)| v.parse::<i64>().ok())
        };
        let (Some(span), Some(samples)) = (parameter("span_ns"), parameter("samples")) else {
            return;
        };
        let linux = self.config.contains("console=hvc0");
        let (names, fast, missing): (&[&str], _, _) = if linux {
            (&["CLOCK_MONOTONIC", "CLOCK_REALTIME", "nanosleep"], "CLOCK_REALTIME", "nanosleep")
        } else {
            (&["system_time", "wall_clock", "tsc", "timer", "set_timer_op"], "tsc", "timer")
        };
        let begin = real + 5_000_000;
        let probes_clocks = self.config.contains("test=clocks");
        let mut say = |at: i64, line: &str| self.script.push((at, line.as_bytes().to_vec()));
        match behaviour {
            Behaviour::Mute => return,
            Behaviour::Floods => return say(begin, &"x".repeat(100_000)),
            _ => {}
        }
        if !probes_clocks {
            return self.tries(real, span, behaviour);
        }
        say(begin, "booting \x1b[1m\r\n");
        let whole = self.tdf.to_real(span.into()) as i64;
        for i in 0..samples {
            let at = begin + whole * i / (samples - 1);
            if behaviour == Behaviour::Crashes && i == samples / 2 {
                self.down = Some((at, 3));
                return;
            }
            for name in names {
                if behaviour == Behaviour::Missing && *name == missing {
                    continue;
                }
                let mut value = if self.active {
                    self.virt0 + self.tdf.to_virtual((at - self.real0).into()) as i64
                } else {
                    at
                };
                if behaviour == Behaviour::Fast && *name == fast {
                    value += (value - self.virt0) / 1_000_000;
                }
                let reading = Reading {
                    clock: name,
                    real_before_ns: at - 40,
                    real_after_ns: at + 40,
                    value_ns: value,
                    slack_real_ns: 0,
                };
                self.script.push((at + 100, format!("{reading}\r\n").into_bytes()));
            }
        }
        let end = begin + whole + 1000;
        let result = if behaviour == Behaviour::SaysFailure { "FAILURE" } else { "SUCCESS" };
        self.script.push((end, format!("Test result: {result}\r\n").into_bytes()));
        self.down = Some((end + 1000, 0));
    }
}

impl Hypervisor for Machine {
    fn call(&mut self, op: Op<'_>) -> Result<u64, Errno> {
        let domctl = match op {
            Op::Domctl(domctl) => domctl,
            Op::Version => return Ok((4 << 16) | 17),
            Op::ExtraVersion(extra) => {
                extra[..2].copy_from_slice(b".5");
                return Ok(0);
            }
            Op::Sample(_) | Op::Runstate(_) => panic!("dom0 has no need of it"),
        };
        let (interface, id, request) = domctl.request();
        if interface != INTERFACE {
            return Err(Errno(libc::EACCES));
        }
        self.real += 1_000;
        let real = self.real;
        if self.fault == Some(Fault::NoPatch) {
            return Err(Errno(libc::ENOSYS));
        }
        if id == DomId(0) && request == Request::Get {
            domctl.answer(&GetTdf {
                version: TDF_ABI_VERSION,
                num: 1,
                den: 1,
                real_now_ns: real,
                virt_now_ns: real,
                wall_now_ns: real,
                ..GetTdf::default()
            });
            return Ok(0);
        }
        if self.vanish_at.is_some_and(|at| real >= at) {
            return Err(Errno(libc::ESRCH));
        }
        let (fault, sets) = (self.fault, &mut self.sets);
        let domain = self.domains.iter_mut().find(|d| d.id == id).ok_or(Errno(libc::ESRCH))?;
        match request {
            Request::Set(set) => {
                match fault {
                    Some(Fault::Set(errno)) => return Err(Errno(errno)),
                    Some(Fault::SetOf(bad, errno)) if id == DomId(bad) => return Err(Errno(errno)),
                    _ => {}
                }
                if fault != Some(Fault::SetIgnored) {
                    let tdf = set.tdf;
                    let mut real = real;
                    if set.flags & TDF_AT_REAL != 0 {
                        let at = set.real_ns as i64;
                        if domain.paused == 0
                            || at > real
                            || at < domain.paused_at.max(domain.real0)
                        {
                            return Err(Errno(libc::EINVAL));
                        }
                        real = at;
                    }
                    let virt = domain.virt(real);
                    if set.flags & TDF_WALL_ANCHOR != 0 {
                        domain.wall0 = set.wall_ns as i64 - virt;
                    }
                    if tdf != domain.tdf {
                        (domain.real0, domain.virt0, domain.tdf) = (real, virt, tdf);
                        domain.active = true;
                        domain.settle();
                    }
                    domain.reveal = set.flags & TDF_REVEAL != 0;
                    *sets += 1;
                }
            }
            Request::Get => {
                let jump = if fault == Some(Fault::Jump) && real > 3_000_000_000 { 3 } else { 0 };
                let virt = domain.virt(real) + jump;
                domctl.answer(&GetTdf {
                    version: TDF_ABI_VERSION,
                    flags: (u32::from(domain.reveal) * TDF_REVEAL)
                        | (u32::from(domain.active) * TDF_ACTIVE),
                    num: domain.tdf.num(),
                    den: domain.tdf.den(),
                    real0_ns: domain.real0,
                    virt0_ns: domain.virt0,
                    real_now_ns: real,
                    virt_now_ns: virt,
                    wall_now_ns: domain.wall0 + virt,
                });
            }
            Request::Pause if fault == Some(Fault::Pause(id.0)) => return Err(Errno(libc::EPERM)),
            Request::Pause => {
                if domain.paused == 0 {
                    domain.paused_at = real;
                }
                domain.paused += 1;
            }
            Request::Unpause => domain.paused = domain.paused.checked_sub(1).expect("is paused"),
            Request::Info => {
                let down = domain.down.filter(|(at, _)| *at <= real);
                let flags = down.map_or(0, |(_, reason)| (1 << 2) | (u32::from(reason) << 16));
                let ticks = self.network.fault == NetFault::Ticks;
                domctl.answer_info(id, flags, if ticks { real as u64 / 1000 } else { 1000 });
            }
        }
        Ok(0)
    }
}

impl Dom0 for Machine {
    fn tool(&mut self, program: &str, args: &[&str]) -> io::Result<ToolOutput> {
        self.real += TOOL_NS;
        let result = match (program, args) {
            ("xl", args) => self.xl(args),
            ("ip", args) => self.ip(args),
            (store, args) => self.xenstore(store, args),
        };
        Ok(match result {
            Ok(out) => ToolOutput { ok: true, out, err: String::new() },
            Err(err) => ToolOutput { ok: false, out: String::new(), err },
        })
    }

    fn write_config(&mut self, folder: &str, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = format!("/run/{folder}/{name}");
        self.files.insert(path.clone(), text.to_owned());
        Ok(path.into())
    }

    fn open_console(&mut self, tty: &str) -> io::Result<ConsoleId> {
        let id = tty.rsplit('/').next().and_then(|id| id.parse().ok()).map(DomId);
        self.consoles.push(id.ok_or(io::ErrorKind::NotFound)?);
        Ok(ConsoleId(self.consoles.len() - 1))
    }

    fn write_console(&mut self, console: ConsoleId, bytes: &[u8]) -> io::Result<()> {
        let (real, id) = (self.real, self.consoles[console.0]);
        let request = String::from_utf8(bytes.to_vec()).expect("text");
        let domain = self.domains.iter_mut().find(|d| d.id == id).ok_or(io::ErrorKind::NotFound)?;
        if let Some(rest) = request.strip_prefix("tdf-do ") {
            let tdf = domain.tdf;
            let (number, command) = rest.trim().split_once(' ').expect("a command");
            let (answer, virtual_ns) =
                self.network.command(&self.store, &domain.name, tdf, command);
            let mut text = String::new();
            for line in answer.lines().chain(["tdf-end 0"]) {
                text.push_str(&format!("tdf-out {number} {line}\r\n"));
            }
            let at = real + tdf.to_real(virtual_ns.into()) as i64 + 1_000_000;
            domain.script.push((at, text.into_bytes()));
            return Ok(());
        }
        if domain.config.contains("test=serve") {
            let behaviour = self.behaviours.get(&domain.name).copied().unwrap_or_default();
            let parameters = request.trim().strip_prefix("tdf-ask ").expect("a request");
            let config = std::mem::replace(
                &mut domain.config,
                format!("console=hvc0 test=clocks {parameters}"),
            );
            domain.boot(real, behaviour);
            (domain.config, domain.down) = (config, None);
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> io::Result<Vec<ConsoleEvent>> {
        let until = self.real + timeout.as_nanos() as i64;
        let open = |id: DomId| self.consoles.iter().rposition(|console| *console == id);
        let next = self
            .domains
            .iter()
            .enumerate()
            .filter_map(|(at, d)| Some((d.script.first()?.0, at, open(d.id)?)))
            .min()
            .filter(|(due, ..)| *due <= until);
        let Some((due, at, console)) = next else {
            self.real = until;
            return Ok(Vec::new());
        };
        self.real = self.real.max(due);
        let (_, mut bytes) = self.domains[at].script.remove(0);
        // A terminal cuts where it likes.
        let rest = bytes.split_off(bytes.len() / 3);
        let id = ConsoleId(console);
        Ok(vec![ConsoleEvent::Bytes(id, bytes), ConsoleEvent::Bytes(id, rest)])
    }

    fn pause(&mut self, time: Duration) {
        self.real += time.as_nanos() as i64;
    }

    fn now(&mut self) -> Duration {
        Duration::from_nanos(self.real as u64)
    }

    fn interrupted(&mut self) -> bool {
        match &mut self.interrupt_after {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }

    fn log(&mut self, line: &str) {
        self.log.push(line.to_owned());
    }
}
