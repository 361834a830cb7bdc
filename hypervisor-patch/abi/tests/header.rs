// SPDX-License-Identifier: MIT OR Apache-2.0
//! `tdf-abi` against `xen/include/public/tdf.h`: the same numbers, sizes and offsets.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use core::fmt::Write as _;
use core::mem::offset_of;

use common::{added_file, cc, folder, patches, put, read, series};
use tdf_abi::*;

/// C that compiles only if `size_of` and each `offset_of` are what Rust has.
macro_rules! same_layout {
    ($out:ident, $rust:ident = $c:literal { $($field:ident = $name:literal),* $(,)? }) => {
        writeln!(
            $out, r#"_Static_assert(sizeof(struct {}) == {}, "size");"#, $c, size_of::<$rust>()
        ).unwrap();
        $(writeln!(
            $out, r#"_Static_assert(offsetof(struct {}, {}) == {}, "offset of {}");"#,
            $c, $name, offset_of!($rust, $field), $name
        ).unwrap();)*
    };
}

fn assertions() -> String {
    let mut out = String::from("#include <stddef.h>\n#include <stdint.h>\n#include \"tdf.h\"\n");
    for (name, value) in [
        ("XEN_TDF_ABI_VERSION", TDF_ABI_VERSION),
        ("XEN_TDF_MAX", TDF_MAX),
        ("XEN_TDF_REVEAL", TDF_REVEAL),
        ("XEN_TDF_ACTIVE", TDF_ACTIVE),
        ("XEN_TDF_AT_REAL", TDF_AT_REAL),
        ("XEN_TDF_WALL_ANCHOR", TDF_WALL_ANCHOR),
        ("XEN_DOMCTL_set_tdf", XEN_DOMCTL_SET_TDF),
        ("XEN_DOMCTL_get_tdf", XEN_DOMCTL_GET_TDF),
        ("VCPUOP_tdf_sample", VCPUOP_TDF_SAMPLE),
    ] {
        writeln!(out, r#"_Static_assert({name} == {value}u, "{name}");"#).unwrap();
    }
    same_layout!(out, SetTdf = "xen_domctl_set_tdf" {
        num = "num", den = "den", flags = "flags", pad = "pad",
        real_ns = "real_ns", wall_ns = "wall_ns",
    });
    same_layout!(out, GetTdf = "xen_domctl_get_tdf" {
        version = "version", flags = "flags", num = "num", den = "den",
        real0_ns = "real0", virt0_ns = "virt0", real_now_ns = "real_now",
        virt_now_ns = "virt_now", wall_now_ns = "wall_now",
    });
    same_layout!(out, TdfSample = "xen_tdf_sample" {
        real_ns = "real", virt_ns = "virt", num = "num", den = "den",
    });
    out
}

#[test]
fn the_header_says_what_the_crate_says_in_every_abi() {
    let folder = folder("header");
    put(&folder, "tdf.h", &added_file("xen/include/public/tdf.h"));
    put(&folder, "same.c", &assertions());
    put(&folder, "plain.c", "#include <stdint.h>\n#include \"tdf.h\"\n");
    let abis: &[&str] = if cfg!(target_arch = "x86_64") { &["-m64", "-m32"] } else { &[] };
    let check = |options: &[&str], source| {
        let args = [&["-ffreestanding", "-S", "-o", "/dev/null", source], options].concat();
        cc(&folder, &args).unwrap_or_else(|messages| panic!("{options:?}: {messages}"));
    };
    check(&["-std=c99", "-pedantic"], "plain.c");
    check(&[], "same.c");
    for abi in abis {
        check(&[*abi], "same.c");
    }
}

#[test]
fn each_assertion_can_fail() {
    let folder = folder("header-wrong");
    put(&folder, "tdf.h", &added_file("xen/include/public/tdf.h"));
    let right = assertions();
    for line in right.lines().filter(|line| line.contains(" == ")) {
        put(&folder, "wrong.c", &right.replace(line, &line.replace(" == ", " == 1 + ")));
        let args = ["-ffreestanding", "-S", "-o", "/dev/null", "wrong.c"];
        assert!(cc(&folder, &args).is_err(), "compiles with a wrong {line}");
    }
}

#[test]
fn the_series_names_each_patch_once_and_each_says_who_and_why() {
    let mut files: Vec<_> = std::fs::read_dir(patches())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".patch"))
        .collect();
    files.sort();
    assert_eq!(series(), files);
    for name in files {
        let text = read(&patches().join(&name));
        let (message, _) = text.split_once("\n---\n").expect("a message, then the changes");
        assert!(message.contains("\nSubject: [PATCH] "), "{name} has no subject");
        assert!(message.contains("\nSigned-off-by: "), "{name} is not signed off");
        assert!(message.contains("\nTested "), "{name} does not say how it was tested");
    }
}
