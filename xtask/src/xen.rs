// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor: its source, the patch queue, the build.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tdf_abi::Tdf;

use crate::apt::{Apt, Base};
use crate::exec::{Cmd, Step, write_atomic};
use crate::patch;
use crate::paths;
use crate::stamp::{Inputs, Stamp};

/// Which Xen to build.
#[derive(Clone)]
pub struct Options {
    /// The release whose source package is used.
    pub base: Base,
    /// A tree to use instead of the source package; it is copied, not changed.
    pub source: Option<PathBuf>,
    /// The factor that every domU gets when nothing else sets one.
    pub default_tdf: Tdf,
    /// Leave the queue out.
    pub stock: bool,
}

/// A hypervisor that was built.
pub struct Xen {
    /// The 32-bit ELF file that QEMU and other multiboot loaders take.
    pub image: PathBuf,
    /// Its version.
    pub version: String,
}

/// `make` in the hypervisor's folder of a tree, on all processors.
fn make(tree: &Path) -> Cmd {
    let jobs = std::thread::available_parallelism().map_or(2, usize::from);
    Cmd::new("make").arg("-C").arg(tree.join("xen")).arg(format!("-j{jobs}"))
}

/// The build of a configured tree. The banner names no build machine and no time: the same source
/// gives the same hypervisor.
pub fn make_image(tree: &Path) -> Cmd {
    make(tree)
        .args(["XEN_BUILD_DATE=", "XEN_BUILD_TIME=", "XEN_BUILD_HOST=lab"])
        .args(["XEN_WHOAMI=xen-tdf", "XEN_DOMAIN=lab"])
}

/// Fetches, patches, configures and builds; each only as far as its inputs changed.
///
/// # Errors
/// The source cannot be had, the queue does not apply, or the build fails.
pub fn build(options: &Options) -> Result<Xen> {
    let tree = prepare(options)?;
    let what = if options.stock { "stock" } else { "patched" };
    let config = fs::read_to_string(paths::root().join("hypervisor-patch/config/tdf.config"))
        .context("cannot read hypervisor-patch/config/tdf.config")?;
    let config = match options.stock {
        true => String::new(),
        false => format!(
            "{config}CONFIG_TDF_DEFAULT_NUM={}\nCONFIG_TDF_DEFAULT_DEN={}\n",
            options.default_tdf.num(),
            options.default_tdf.den()
        ),
    };
    let image = image(&tree);
    let inputs = Inputs::new().text(&config).hash();
    let stamp = Stamp::new(tree.join(".built"));
    if !stamp.is(&inputs) || !image.is_file() {
        stamp.clear();
        let mut step = Step::begin(
            &format!("{}-xen-{what}", options.base),
            &format!("Xen ({what}, {})", options.base),
        )?;
        configure(&mut step, &tree, &config)?;
        step.run(&make_image(&tree))?;
        stamp.set(&inputs)?;
        step.done(&match options.stock {
            true => "built".to_owned(),
            false => format!("built, TDF {} for every domU", options.default_tdf),
        });
    }
    let version = version(&tree)?;
    Ok(Xen { image, version })
}

/// Configures a tree: the default, with the lines of `config` instead of what it says of their symbols.
fn configure(step: &mut Step, tree: &Path, config: &str) -> Result<()> {
    let dotconfig = tree.join("xen/.config");
    if !dotconfig.is_file() {
        step.run(&make(tree).arg("defconfig"))?;
    }
    let symbol = |line: &str| {
        line.trim_start_matches("# ").split(['=', ' ']).next().unwrap_or("").to_owned()
    };
    let old = fs::read_to_string(&dotconfig).context("cannot read Xen's .config")?;
    let kept: Vec<&str> = old
        .lines()
        .filter(|old| {
            config.lines().all(|new| symbol(new).is_empty() || symbol(new) != symbol(old))
        })
        .collect();
    write_atomic(&dotconfig, format!("{}\n{config}", kept.join("\n")))?;
    step.run(&make(tree).arg("olddefconfig"))?;
    // Left to itself the build would forget what the last configuration was, take every symbol
    // for changed, and begin anew.
    step.run(&make(tree).arg("syncconfig"))
}

/// Where the build of a tree leaves the image that multiboot loaders take.
pub fn image(tree: &Path) -> PathBuf {
    tree.join("xen/xen")
}

/// The tree with (or, for stock, without) the queue applied.
///
/// # Errors
/// The source cannot be had, or the queue does not apply.
pub fn prepare(options: &Options) -> Result<PathBuf> {
    let dir = paths::work().join(options.base.to_string());
    let kind = if options.stock { "xen-stock" } else { "xen" };
    let tree = match &options.source {
        Some(_) => dir.join(format!("{kind}-given")),
        None => dir.join(kind),
    };
    if let Some(source) = &options.source {
        if !source.join("xen/include/public/domctl.h").is_file() {
            bail!(
                "--xen-src {}: not a Xen source tree (no xen/include/public/domctl.h)",
                source.display()
            );
        }
        if !options.stock {
            patch::known_version(source)
                .with_context(|| format!("--xen-src {}", source.display()))?;
        }
    }
    // Which patches a tree has got depends on its version, so that only the tree itself can tell.
    let inputs = |tree: &Path| -> Result<String> {
        let inputs = match options.stock {
            true => Inputs::new(),
            false => patch::inputs(&patch::version(tree)?)?,
        };
        Ok(match &options.source {
            Some(source) => inputs.text(&source.to_string_lossy()),
            None => inputs,
        }
        .hash())
    };
    let stamp = Stamp::new(tree.join(".prepared"));
    if inputs(&tree).is_ok_and(|inputs| stamp.is(&inputs)) {
        return Ok(tree);
    }
    let mut step = Step::begin(&format!("{}-{kind}-source", options.base), "Xen source")?;
    let tarball = match options.source {
        Some(_) => None,
        None => Some(Apt::open(options.base)?.source(&mut step, "xen")?.1),
    };
    // Everything happens in a folder of its own, which becomes the tree only when it is complete.
    let fresh = dir.join(format!("{kind}.part"));
    remove(&fresh)?;
    fs::create_dir_all(&fresh).with_context(|| format!("cannot create {}", fresh.display()))?;
    match (&options.source, tarball) {
        (Some(source), _) => {
            step.run(&Cmd::new("cp").args(["-a", "--"]).arg(source.join(".")).arg(&fresh))?;
            // Whatever was built there was built with another configuration.
            step.run(&Cmd::new("make").arg("-C").arg(fresh.join("xen")).args(["-s", "distclean"]))?;
        }
        (None, Some(tarball)) => {
            let tar = Cmd::new("tar").args(["--strip-components=1", "-C"]).arg(&fresh);
            step.run(&tar.arg("-xf").arg(tarball))?;
        }
        (None, None) => bail!("no Xen source"),
    }
    let applied = match options.stock {
        true => String::new(),
        false => format!(", {} patches applied", patch::apply(&mut step, &fresh)?.0),
    };
    // A tree that is half removed has no stamp.
    stamp.clear();
    remove(&tree)?;
    fs::rename(&fresh, &tree).with_context(|| format!("cannot create {}", tree.display()))?;
    stamp.set(&inputs(&tree)?)?;
    step.done(&format!("{}{applied}", version(&tree)?));
    Ok(tree)
}

/// Removes a folder, if it is there.
pub fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// The version that the tree's makefile states.
fn version(tree: &Path) -> Result<String> {
    let makefile = tree.join("xen/Makefile");
    let text = fs::read_to_string(&makefile)
        .with_context(|| format!("cannot read {}", makefile.display()))?;
    let value = |name: &str| patch::variable(&text, name);
    match (value("XEN_VERSION"), value("XEN_SUBVERSION"), value("XEN_EXTRAVERSION")) {
        (Some(major), Some(minor), Some(extra)) => {
            Ok(format!("{major}.{minor}{}", extra.replace("$(XEN_VENDORVERSION)", "")))
        }
        _ => bail!("{} states no version", makefile.display()),
    }
}

/// `patch check`: every message is complete and every line in Xen's style, for whichever version, and
/// the queue applies to a pristine tree of the base's version with no fuzz.
///
/// # Errors
/// Names the patch that fails.
pub fn check_queue(base: Base, source: Option<PathBuf>) -> Result<()> {
    let count = patch::check_patches()?;
    let stock = prepare(&Options { base, source, default_tdf: Tdf::ONE, stock: true })?;
    let mut step = Step::begin(&format!("{base}-patch-check"), "patch check")?;
    let copy = paths::work().join(base.to_string()).join("patch-check");
    remove(&copy)?;
    step.run(&Cmd::new("cp").args(["-a", "--"]).arg(&stock).arg(&copy))?;
    let (applied, variants) = patch::apply(&mut step, &copy)?;
    remove(&copy)?;
    step.done(&format!(
        "{applied} patches, {variants} of them variants, apply to Xen {} with no fuzz; {count} are complete and in style",
        version(&stock)?
    ));
    Ok(())
}

/// `patch check --each`: Xen builds after each patch of the queue, and at the end without what they add.
///
/// # Errors
/// Names the first patch after which it does not build.
pub fn check_each(base: Base, source: Option<PathBuf>) -> Result<()> {
    let stock = prepare(&Options { base, source, default_tdf: Tdf::ONE, stock: true })?;
    let copy = paths::work().join(base.to_string()).join("patch-each");
    let mut step = Step::begin(&format!("{base}-patch-each"), "patch check")?;
    remove(&copy)?;
    step.run(&Cmd::new("cp").args(["-a", "--"]).arg(&stock).arg(&copy))?;
    let patches = patch::for_tree(&copy)?;
    configure(&mut step, &copy, "")?;
    step.run(&make_image(&copy))?;
    step.done("stock Xen builds");
    for patch in &patches {
        let name = patch.file_name().unwrap_or_default().to_string_lossy();
        let mut step = Step::begin(&format!("{base}-patch-each"), &name[..name.len().min(32)])?;
        patch::apply_one(&mut step, &copy, patch)?;
        configure(&mut step, &copy, "CONFIG_TIME_DILATION=y\n")?;
        step.run(&make_image(&copy))
            .with_context(|| format!("Xen does not build after {}", paths::shown(patch)))?;
        step.done("builds");
    }
    let mut step = Step::begin(&format!("{base}-patch-each"), "without TIME_DILATION")?;
    configure(&mut step, &copy, "# CONFIG_TIME_DILATION is not set\n")?;
    step.run(&make_image(&copy)).context("Xen does not build without TIME_DILATION")?;
    step.done("builds");
    remove(&copy)
}
