// SPDX-License-Identifier: MIT OR Apache-2.0
//! External commands: shown with `-v`, logged always, and quoted when they fail.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::paths;

static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Lines of a failed step's log that are shown.
const TAIL_LINES: usize = 20;

/// Turns the echo of commands on (`-v`).
pub fn set_verbose(on: bool) {
    VERBOSE.store(on, Ordering::Relaxed);
}

/// One step of the work, with a spinner (or, once its length is known, a bar) while it runs.
///
/// All commands of a step share `target/xen-tdf/logs/NAME.log`.
pub struct Step {
    bar: ProgressBar,
    title: String,
    log: PathBuf,
    lines: u64,
    began: Instant,
}

impl Step {
    /// Begins the step `name` (its log's name), shown as `title`.
    pub fn begin(name: &str, title: &str) -> Result<Self> {
        let dir = paths::work().join("logs");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let log = dir.join(format!("{name}.log"));
        // How many lines the step printed last time tells how long it will be this time.
        let expected = File::open(&log).map(|f| BufReader::new(f).lines().count()).unwrap_or(0);
        File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let bar = if expected > 50 {
            ProgressBar::new(expected as u64).with_style(style("{msg:32} {wide_bar} {elapsed:>4}"))
        } else {
            ProgressBar::new_spinner().with_style(style("{msg:32} {spinner} {elapsed:>4}"))
        };
        bar.set_message(title.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Ok(Self { bar, title: title.to_owned(), log, lines: 0, began: Instant::now() })
    }

    /// The step's log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Counts one line of progress.
    pub fn tick(&mut self) {
        self.lines += 1;
        self.bar.set_position(self.lines);
    }

    /// Ends the step: one line with its title, what came of it, and how long it took.
    pub fn done(self, result: &str) {
        self.bar.finish_and_clear();
        eprintln!("{:32} {result} ({:.0} s)", self.title, self.began.elapsed().as_secs_f32());
    }

    /// Appends a line to the step's log.
    pub fn note(&self, line: &str) -> Result<()> {
        let mut log = OpenOptions::new().append(true).open(&self.log)?;
        writeln!(log, "{line}")?;
        Ok(())
    }

    /// Runs `command` to its end; its output goes to the log.
    ///
    /// # Errors
    /// The command could not be started or failed; the error quotes it and the log's tail.
    pub fn run(&mut self, command: &Cmd) -> Result<()> {
        self.output(command).map(drop)
    }

    /// As [`Self::run`], and returns what the command wrote to standard output.
    pub fn output(&mut self, command: &Cmd) -> Result<String> {
        self.announce(command)?;
        let log = OpenOptions::new().append(true).open(&self.log)?;
        let mut child = command
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start `{}`", command.program.to_string_lossy()))?;
        let mut text = String::new();
        if let Some(stdout) = child.stdout.take() {
            let mut log = log;
            for line in BufReader::new(stdout).split(b'\n') {
                let line = String::from_utf8_lossy(&line?).into_owned();
                self.tick();
                writeln!(log, "{line}")?;
                text.push_str(&line);
                text.push('\n');
            }
        }
        let status = child.wait()?;
        if !status.success() {
            bail!("`{}` failed ({status})\n{}", command.shown(), self.tail());
        }
        Ok(text)
    }

    /// Shows (with `-v`) and logs the command that is about to run.
    pub fn announce(&self, command: &Cmd) -> Result<()> {
        if VERBOSE.load(Ordering::Relaxed) {
            self.bar.suspend(|| eprintln!("$ {}", command.shown()));
        }
        self.note(&format!("$ {}", command.shown()))
    }

    /// The end of the log, and where all of it is.
    pub fn tail(&self) -> String {
        tail(&self.log)
    }
}

/// The last lines of `file`, indented, and its path.
pub fn tail(file: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(mut f) = File::open(file) {
        // A log that cannot be read is shown as empty; its path still says where to look.
        let _ = f.read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    let mut out = String::new();
    for line in &lines[from..] {
        out.push_str("  | ");
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out + &format!("whole log: {}", paths::shown(file))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A command line as data.
#[derive(Clone)]
pub struct Cmd {
    program: OsString,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
}

impl Cmd {
    /// The command `program`, without arguments.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self { program: program.into(), args: Vec::new(), envs: Vec::new(), dir: None }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds several arguments.
    pub fn args<I: IntoIterator<Item = S>, S: Into<OsString>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.envs.push((name.into(), value.into()));
        self
    }

    /// Sets the folder in which it runs.
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// The command for `std`, set to be killed when we are.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.envs.iter().map(|(k, v)| (k, v)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        // SAFETY: prctl is async-signal-safe and touches nothing of the parent's memory.
        unsafe { command.pre_exec(|| die_with_parent().map_err(std::io::Error::other)) };
        command
    }

    /// The command as a person would type it.
    pub fn shown(&self) -> String {
        let quote = |s: &OsString| {
            let s = s.to_string_lossy();
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./,:@%".contains(c);
            if !s.is_empty() && s.chars().all(plain) {
                s.into_owned()
            } else {
                format!("'{}'", s.replace('\'', r"'\''"))
            }
        };
        let envs = self.envs.iter().map(|(k, v)| format!("{}={}", k.to_string_lossy(), quote(v)));
        let words = std::iter::once(&self.program).chain(&self.args).map(quote);
        let line = envs.chain(words).collect::<Vec<_>>().join(" ");
        match &self.dir {
            Some(dir) => format!("cd {} && {line}", paths::shown(dir)),
            None => line,
        }
    }
}

/// Asks the kernel to kill this process when its parent dies, so that nothing is left behind.
pub fn die_with_parent() -> Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes one integer and no pointers.
    match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
        0 => Ok(()),
        _ => Err(anyhow!("prctl(PR_SET_PDEATHSIG): {}", std::io::Error::last_os_error())),
    }
}

/// Writes `text` to `file` in one step: a killed run leaves the old content or the new.
pub fn write_atomic(file: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    let part = file.with_extension("part");
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    fs::write(&part, text).with_context(|| format!("cannot write {}", part.display()))?;
    fs::rename(&part, file).with_context(|| format!("cannot write {}", file.display()))
}
