// SPDX-License-Identifier: MIT OR Apache-2.0
//! Debian packages of a base, fetched by the system's own package tools.
//!
//! A base is a Debian release. Its packages come through a private apt state below `target/`, made
//! from the system's own source entries with the release's name replaced: no registry's address
//! and no version is written down anywhere, and apt checks the signatures.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;

use crate::exec::{Cmd, Step, write_atomic};
use crate::paths;

/// A Debian release from which the lab's Xen, dom0 and Linux guests come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Base {
    /// Xen 4.17, Linux 6.1
    Debian12,
    /// Xen 4.20, Linux 6.12
    Debian13,
}

impl Base {
    fn codename(self) -> &'static str {
        match self {
            Self::Debian12 => "bookworm",
            Self::Debian13 => "trixie",
        }
    }

    /// The base of this machine's own release.
    ///
    /// # Errors
    /// The machine runs something else.
    pub fn of_host() -> Result<Self> {
        let codename = host_codename()?;
        Self::value_variants().iter().copied().find(|b| b.codename() == codename).ok_or_else(|| {
            anyhow!("this machine runs Debian {codename}, which is no base of the lab; name one with --base")
        })
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debian12 => "debian12",
            Self::Debian13 => "debian13",
        })
    }
}

fn host_codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let field = |name: &str| {
        release.lines().find_map(|l| l.strip_prefix(name)).map(|v| v.trim_matches('"').to_owned())
    };
    match (field("ID=").as_deref(), field("VERSION_CODENAME=")) {
        (Some("debian"), Some(codename)) => Ok(codename),
        _ => bail!(
            "the lab's packages are Debian's: this machine's /etc/os-release names another system"
        ),
    }
}

/// A package and one of its versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    depends: Vec<String>,
}

/// The private apt state of one base.
pub struct Apt {
    base: Base,
    dir: PathBuf,
}

impl Apt {
    /// Opens the state of `base`, and fetches the package lists if there are none.
    pub fn open(base: Base) -> Result<Self> {
        let apt = Self { base, dir: paths::work().join(base.to_string()).join("apt") };
        for dir in ["lists/partial", "cache/archives/partial", "sources", "fetched"] {
            fs::create_dir_all(apt.dir.join(dir))
                .with_context(|| format!("cannot create {}", apt.dir.join(dir).display()))?;
        }
        apt.configure()?;
        if !apt.dir.join("updated").exists() {
            apt.update()?;
        }
        Ok(apt)
    }

    fn configure(&self) -> Result<()> {
        let host = host_codename()?;
        let mut found = false;
        for (name, entry) in host_entries()? {
            if let Some(entry) = derive_entry(&name, &entry, &host, self.base.codename()) {
                write_atomic(&self.dir.join("sources").join(&name), entry)?;
                found = true;
            }
        }
        if !found {
            bail!(
                "no source entry for Debian {host} in /etc/apt/sources.list or /etc/apt/sources.list.d"
            );
        }
        fs::write(self.dir.join("status"), "").context("cannot write apt's state")?;
        let dir = self.dir.display();
        write_atomic(
            &self.dir.join("apt.conf"),
            format!(
                "Dir::State \"{dir}\";\nDir::State::Lists \"{dir}/lists\";\nDir::State::status \"{dir}/status\";\n\
                 Dir::Cache \"{dir}/cache\";\nDir::Etc::SourceList \"/dev/null\";\nDir::Etc::SourceParts \"{dir}/sources\";\n\
                 Dir::Etc::Preferences \"/dev/null\";\nDir::Etc::PreferencesParts \"/dev/null\";\n\
                 APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\nAPT::Sandbox::User \"\";\n\
                 Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n"
            ),
        )
    }

    fn command(&self, program: &str) -> Cmd {
        Cmd::new(program).env("APT_CONFIG", self.dir.join("apt.conf")).dir(self.fetched())
    }

    fn fetched(&self) -> PathBuf {
        self.dir.join("fetched")
    }

    fn update(&self) -> Result<()> {
        let mut step = Step::begin(&format!("{}-lists", self.base), "package lists")?;
        step.run(&self.command("apt-get").args(["-q", "update"]))?;
        fs::write(self.dir.join("updated"), "").context("cannot write apt's state")?;
        step.done(&format!("fetched for {}", self.base));
        Ok(())
    }

    /// The versions of the binary package `name`, newest first.
    pub fn versions(&self, step: &mut Step, name: &str) -> Result<Vec<Package>> {
        let text = step.output(&self.command("apt-cache").args(["show", name]))?;
        let packages: Vec<Package> = stanzas(&text).filter_map(binary).collect();
        match packages.is_empty() {
            true => bail!("{} has no package {name}", self.base),
            false => Ok(packages),
        }
    }

    /// Fetches the source tarball of the source package `name`, in the newest version that can
    /// still be had: the archive drops the files of superseded versions before their index entries.
    ///
    /// Returns the version and the tarball.
    pub fn source(&self, step: &mut Step, name: &str) -> Result<(String, PathBuf)> {
        let text =
            step.output(&self.command("apt-cache").args(["showsrc", "--only-source", name]))?;
        let mut versions: Vec<String> =
            stanzas(&text).filter_map(|s| field(s, "Version")).map(str::to_owned).collect();
        sort_newest_first(step, &mut versions)?;
        let mut why = anyhow!("{} has no source package {name}", self.base);
        for version in versions {
            let upstream = version.rsplit_once('-').map_or(version.as_str(), |(v, _)| v);
            let stem = format!("{name}_{upstream}.orig.tar.");
            let get = self
                .command("apt-get")
                .args(["-q", "source", "--tar-only", "--download-only"])
                .arg(format!("{name}={version}"));
            match step.run(&get) {
                Ok(()) => {
                    let tarball = self.fetched_file(|f| f.starts_with(&stem))?;
                    return Ok((version, tarball));
                }
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// Fetches the newest version of `name` that can still be had; returns it and its file.
    pub fn binary(&self, step: &mut Step, name: &str) -> Result<(Package, PathBuf)> {
        let mut why = None;
        for package in self.versions(step, name)? {
            let stem = format!("{name}_{}_", package.version.replace(':', "%3a"));
            if let Ok(file) = self.fetched_file(|f| f.starts_with(&stem) && f.ends_with(".deb")) {
                return Ok((package, file));
            }
            let wanted = format!("{name}={}", package.version);
            match step.run(&self.command("apt-get").args(["-q", "download"]).arg(wanted)) {
                Ok(()) => {
                    let file =
                        self.fetched_file(|f| f.starts_with(&stem) && f.ends_with(".deb"))?;
                    return Ok((package, file));
                }
                Err(error) => why = Some(error),
            }
        }
        Err(why.unwrap_or_else(|| anyhow!("{} has no package {name}", self.base)))
    }

    /// Fetches `names` and every library package that they need; returns the files, in order.
    pub fn with_libraries(&self, step: &mut Step, names: &[String]) -> Result<Vec<PathBuf>> {
        let mut todo: Vec<String> = names.to_vec();
        let mut seen: BTreeSet<String> = todo.iter().cloned().collect();
        let mut files = Vec::new();
        while let Some(name) = todo.pop() {
            let (package, file) = self.binary(step, &name)?;
            files.push(file);
            for dependency in package.depends {
                let library = dependency.starts_with("lib") || dependency.starts_with("zlib");
                if library && seen.insert(dependency.clone()) {
                    todo.push(dependency);
                }
            }
        }
        files.sort();
        Ok(files)
    }

    fn fetched_file(&self, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
        for entry in fs::read_dir(self.fetched())? {
            let path = entry?.path();
            if path.file_name().and_then(|n| n.to_str()).is_some_and(&wanted) {
                return Ok(path);
            }
        }
        bail!("apt fetched nothing into {}", paths::shown(&self.fetched()))
    }
}

/// The system's own source entries: file names and contents.
fn host_entries() -> Result<Vec<(String, String)>> {
    let etc = Path::new("/etc/apt");
    let mut files = vec![etc.join("sources.list")];
    if let Ok(parts) = fs::read_dir(etc.join("sources.list.d")) {
        files.extend(parts.filter_map(|e| Some(e.ok()?.path())));
    }
    files.sort();
    let wanted = |f: &PathBuf| f.extension().is_some_and(|e| e == "list" || e == "sources");
    files
        .into_iter()
        .filter(|f| wanted(f) && f.is_file())
        .map(|f| {
            let name = f.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text =
                fs::read_to_string(&f).with_context(|| format!("cannot read {}", f.display()))?;
            Ok((name, text))
        })
        .collect()
}

/// The host's source entry made one of another release, with sources; `None` if it is none of the
/// host's own release (another vendor's repository, say).
fn derive_entry(name: &str, text: &str, host: &str, wanted: &str) -> Option<String> {
    let suite = |s: &str| s == host || s.strip_prefix(host).is_some_and(|r| r.starts_with('-'));
    let rename = |s: &str| match s.strip_prefix(host) {
        Some(rest) if suite(s) => format!("{wanted}{rest}"),
        _ => s.to_owned(),
    };
    let text: Vec<&str> = text.lines().filter(|l| !l.trim_start().starts_with('#')).collect();
    let mut out = String::new();
    if name.ends_with(".sources") {
        for stanza in text.split(|l| l.trim().is_empty()).filter(|s| !s.is_empty()) {
            let suites = stanza.iter().find_map(|l| l.strip_prefix("Suites:"))?;
            if !suites.split_whitespace().any(suite) {
                continue;
            }
            for line in stanza {
                match line.split_once(':') {
                    Some(("Types", _)) => out.push_str("Types: deb deb-src"),
                    Some(("Suites", suites)) => {
                        let suites: Vec<String> = suites.split_whitespace().map(rename).collect();
                        out.push_str(&format!("Suites: {}", suites.join(" ")));
                    }
                    _ => out.push_str(line),
                }
                out.push('\n');
            }
            out.push('\n');
        }
    } else {
        for line in text {
            // deb [options] URI suite component…
            let words: Vec<&str> = line.split_whitespace().collect();
            let options = words.iter().position(|w| w.ends_with(']')).unwrap_or(0);
            let is_suite = words.get(options + 2).is_some_and(|s| suite(s));
            if words.first() != Some(&"deb") || !is_suite {
                continue;
            }
            let rest: Vec<String> = words[1..].iter().map(|w| rename(w)).collect();
            for kind in ["deb", "deb-src"] {
                out.push_str(&format!("{kind} {}\n", rest.join(" ")));
            }
        }
    }
    (!out.is_empty()).then_some(out)
}

fn stanzas(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n").filter(|s| !s.trim().is_empty())
}

fn field<'a>(stanza: &'a str, name: &str) -> Option<&'a str> {
    stanza.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn binary(stanza: &str) -> Option<Package> {
    let depends = field(stanza, "Depends").unwrap_or("");
    Some(Package {
        name: field(stanza, "Package")?.to_owned(),
        version: field(stanza, "Version")?.to_owned(),
        // Of alternatives the first; without version and architecture qualifiers.
        depends: depends
            .split(',')
            .filter_map(|d| d.split('|').next()?.split([' ', ':', '(']).find(|w| !w.is_empty()))
            .map(str::to_owned)
            .collect(),
    })
}

impl Package {
    /// The dependencies whose names begin with `prefix`.
    pub fn depends_on<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        self.depends.iter().map(String::as_str).filter(move |d| d.starts_with(prefix))
    }
}

fn sort_newest_first(step: &mut Step, versions: &mut [String]) -> Result<()> {
    // A handful of versions at most; dpkg knows how to compare them, we do not.
    for i in 1..versions.len() {
        let mut j = i;
        while j > 0 {
            let newer =
                Cmd::new("dpkg").args(["--compare-versions", &versions[j], "gt", &versions[j - 1]]);
            step.announce(&newer)?;
            if !newer.command().status().context("cannot start dpkg")?.success() {
                break;
            }
            versions.swap(j, j - 1);
            j -= 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_host_becomes_one_of_the_base_with_sources() {
        let deb822 = "Types: deb\n# note\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n";
        assert_eq!(
            derive_entry("debian.sources", deb822, "bookworm", "trixie").unwrap(),
            "Types: deb deb-src\nURIs: http://mirror.example/debian\nSuites: trixie trixie-updates\nComponents: main\n\n"
        );
        let line =
            "deb [signed-by=/k.gpg] http://mirror.example/debian bookworm-security main # x\n";
        let derived = derive_entry("sources.list", line, "bookworm", "bookworm").unwrap();
        assert!(derived.contains(
            "deb-src [signed-by=/k.gpg] http://mirror.example/debian bookworm-security main"
        ));
    }

    #[test]
    fn other_vendors_entries_are_left_out() {
        let other = "Types: deb\nURIs: http://vendor.example\nSuites: stable\nComponents: main\n";
        assert_eq!(derive_entry("v.sources", other, "bookworm", "bookworm"), None);
        assert_eq!(
            derive_entry("v.list", "deb http://v.example nodistro main", "bookworm", "bookworm"),
            None
        );
    }

    #[test]
    fn dependencies_are_read_without_their_qualifiers() {
        let p = binary("Package: a\nVersion: 1\nDepends: libc6 (>= 2.35), python3:any, b | c\n")
            .unwrap();
        assert_eq!(p.depends, ["libc6", "python3", "b"]);
    }
}
