// SPDX-License-Identifier: MIT OR Apache-2.0
//! The xl configurations that `tdf run` writes.

use std::path::Path;

use crate::network::{End, Network, Via};
use crate::scenario::{Domain, Kind, Test};

const GUEST_MEMORY_MIB: u32 = 16;
const LINUX_MEMORY_MIB: u32 = 192;
const SWITCH_MEMORY_MIB: u32 = 32;
const HOST_MEMORY_MIB: u32 = 160;

/// `text` as a string of xl's syntax.
pub(crate) fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The MAC address of a link's interface in its domain; its interface in the switch, where it has one
/// there, has another.
pub(crate) fn mac(link: usize, in_switch: bool) -> String {
    format!("00:16:3e:00:{:02x}:{:02x}", u8::from(in_switch), (link + 1) & 0xff)
}

/// The bridge of dom0 that a link shares with nobody.
pub(crate) fn own_bridge(link: usize) -> String {
    format!("tdfbr{link}")
}

/// The interfaces of `domain`, as xl writes them.
fn interfaces(domain: &Domain, network: &Network) -> String {
    let mut interfaces = Vec::new();
    for (i, link) in network.links.iter().enumerate() {
        let mtu = link.mtu;
        let mut add = |in_switch, to: String| {
            interfaces.push(quote(&format!("mac={},{to},mtu={mtu}", mac(i, in_switch))));
        };
        match &link.end {
            End::Bridge(bridge) if link.domain == domain.name => {
                add(false, format!("bridge={bridge}"));
            }
            End::Switch(switch, Via::Netback) if link.domain == domain.name => {
                add(false, format!("backend={switch}"));
            }
            End::Switch(switch, Via::Netfront)
                if link.domain == domain.name || *switch == domain.name =>
            {
                add(*switch == domain.name, format!("bridge={}", own_bridge(i)));
            }
            _ => {}
        }
    }
    format!("vif = [ {} ]\n", interfaces.join(", "))
}

/// The xl configuration of a domain with a probe, or in a network; `None` if it has one already.
pub(crate) fn configuration(
    domain: &Domain,
    network: Option<&Network>,
    seed: u64,
    assets: &Path,
) -> Option<String> {
    // Without its own tests of ciphers that nobody uses here it boots in half the time.
    let linux = "console=hvc0 quiet cryptomgr.notests ";
    // A Linux that reads time by a native TSC, which it may choose, is wrong after a change.
    let changing = format!("{linux}clocksource=xen ");
    let changing = changing.as_str();
    let (kernel, ramdisk, memory, extra) = match (&domain.kind, domain.test) {
        (Kind::Guest, Test::Net) => ("guest", None, SWITCH_MEMORY_MIB, "role=switch "),
        (Kind::Guest, _) => ("guest", None, GUEST_MEMORY_MIB, ""),
        (Kind::Linux, Test::Net) => ("vmlinuz", Some("linux-host.cgz"), HOST_MEMORY_MIB, changing),
        (Kind::Linux | Kind::Pvh, Test::Changes) => {
            ("vmlinuz", Some("linux-probe.cgz"), LINUX_MEMORY_MIB, changing)
        }
        (Kind::Linux | Kind::Pvh, _) => {
            ("vmlinuz", Some("linux-probe.cgz"), LINUX_MEMORY_MIB, linux)
        }
        (Kind::Config(_), _) => return None,
    };
    let mode = if domain.kind == Kind::Pvh { "pvh" } else { "pv" };
    let asset = |name: &str| quote(&assets.join(name).to_string_lossy());
    let ramdisk = ramdisk.map(|name| format!("ramdisk = {}\n", asset(name))).unwrap_or_default();
    let interfaces = network.map(|network| interfaces(domain, network)).unwrap_or_default();
    let words = match network {
        Some(network) => {
            let link = network.link_of(&domain.name);
            link.and_then(|link| Some((link.address?, link.mtu)))
                .map(|((address, prefix), mtu)| {
                    format!("ipv6.disable=1 net.address={address}/{prefix} net.mtu={mtu} ")
                })
                .unwrap_or_default()
        }
        None => format!(
            "test={} span_ns={} samples={} {}",
            domain.test,
            domain.span.virtual_ns(domain.factor.tdf()),
            domain.samples,
            domain.late.map(|late| format!("late_ns={} ", late.ns())).unwrap_or_default()
        ),
    };
    let calls = match domain.test {
        Test::Hostile => format!("calls={} ", domain.calls),
        _ => String::new(),
    };
    let more = domain.extra.as_ref().map(|extra| format!("{extra} ")).unwrap_or_default();
    let driver = match (&domain.kind, domain.test) {
        (Kind::Guest, Test::Net) => "driver_domain = 1\n",
        _ => "",
    };
    Some(format!(
        "# Written by tdf run. Change the scenario instead.\n\
         type = \"{mode}\"\nname = {}\nkernel = {}\n{ramdisk}memory = {}\nvcpus = {}\n\
         tsc_mode = \"{}\"\nextra = {}\n{interfaces}{driver}\
         on_poweroff = \"destroy\"\non_reboot = \"destroy\"\non_crash = \"destroy\"\n",
        quote(&domain.name),
        asset(kernel),
        domain.memory_mib.unwrap_or(memory),
        domain.vcpus,
        domain.tsc_mode,
        quote(&format!("{extra}{more}{words}{calls}seed={seed}")),
    ))
}
