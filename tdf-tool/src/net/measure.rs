// SPDX-License-Identifier: MIT OR Apache-2.0
//! The checks of a network: what is done, what theory says, and whether they agree.

use std::time::Duration;

use serde_json::Value;
use switch_model::PortSpec;
use tdf_abi::Tdf;

use super::Lab;
use crate::arrivals::Goodput;
use crate::checks::{
    Check, Cost, Equality, Idle, Kind, Load, Overload, Ping, Processing, Tcp, span,
};
use crate::dom0::Dom0;
use crate::iperf::{Flow, Pings, netstat};
use crate::network::{Hop, Link, PortSettings};
use crate::plot;
use crate::report::{CheckReport, Figure};
use crate::stats::{binomial_interval, ks_distance, ks_limit};
use crate::xen::DomId;

/// Bytes of IP and ICMP headers before a ping's payload.
const PING_HEADERS: u32 = 28;
/// Bytes of IP and TCP headers, with the time stamps that Linux sends in each segment.
const TCP_HEADERS: u32 = 52;
/// Bytes of IP and UDP headers.
const UDP_HEADERS: u32 = 28;
/// The check sequence, which no interface shows.
const CHECK_SEQUENCE: u32 = 4;

/// Xen may fire a timer so much late, ns of real time (`timer_slop`); each port that holds a frame
/// back waits for one.
const TIMER_SLOP_NS: i128 = 50_000;
/// Ping shows whole microseconds.
const PING_RESOLUTION_NS: i64 = 1_000;

/// Of all runs, so many fall outside the interval for lost frames by chance.
const RISK: f64 = 0.001;
/// Bytes that are sent to learn what ideal ports carry.
const CALIBRATION_BYTES: u64 = 3_000_000;
/// Of what ideal ports carry, so much is promised, in percent: a port with a rate also has to wait
/// for the moment of each frame.
const PROMISED: i64 = 80;

/// The port on which iperf3 serves.
const IPERF3_PORT: u16 = 5201;
/// No reports while iperf3 runs.
const SILENT: &str = "-i 0";
/// The same as far as it can be where bytes or blocks are counted: from 3.16 on iperf3 looks only at
/// the end of an interval whether all have been sent (esnet/iperf#1768), and this is its shortest.
const COUNTED: &str = "-i 0.1";

/// By how much a goodput may be off theory, in thousandths.
const GOODPUT_PERMILLE: i64 = 10;
/// By how much goodputs at different factors may differ, in thousandths.
const EQUAL_PERMILLE: i64 = 5;
/// By how much the machine's own part of a round trip may be off 1/TDF, in hundredths.
const SHRINK_PERCENT: i64 = 25;

const NANOSECONDS: &str = "ns";
const BITS: &str = "bit/s";
const PER_FRAME: &str = "ns/frame";
const PER_SECOND: &str = "frames/s";
const SECOND: i64 = 1_000_000_000;

/// Least time from ping to ping, ns of virtual time, that every machine can answer one in.
const PING_INTERVAL_NS: i64 = 20_000_000;
/// How often a tenth of a second of virtual time is waited for a buffer to be full.
const FILLING_TRIES: u32 = 20;

/// Frames of the flood that tells what one costs but for its frames.
const SHORT_FLOOD: u32 = 2000;
/// Frames in a second of virtual time that every machine can send at least.
const SLOWEST_FLOOD: u32 = 1000;

/// What a path does to frames, added up.
struct Theory {
    /// Time of an unhindered frame, ns.
    transit_ns: i64,
    /// Ports that hold frames back.
    waits: i128,
    /// The probability that a frame is lost; `None`: not by independent chance.
    loss: Option<f64>,
}

fn theory(path: &[Hop], frame: u32) -> Theory {
    let transit: u64 = path.iter().map(|hop| hop.transit_ns(frame)).sum();
    let kept = path.iter().map(|hop| hop.loss().map(|p| 1.0 - p)).product::<Option<f64>>();
    Theory {
        transit_ns: narrow(transit.into()),
        waits: path.iter().filter(|hop| hop.transit_ns(frame) > 0).count() as i128,
        loss: kept.map(|kept| 1.0 - kept),
    }
}

/// Frames that a port has ever marked.
fn marks_set(counters: &Value) -> Option<i64> {
    counters["marks"].as_i64()
}

/// Frames for which a port's buffer had no room.
fn queue_full(counters: &Value) -> Option<i64> {
    counters["drops"]["queue_full"].as_i64()
}

fn narrow(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The port on the path that lets the least payload through, and how much that is, bit/s.
fn bottleneck(path: &[Hop], frame: u32, payload: u32) -> Option<(&Hop, i64)> {
    let rates = path.iter().filter_map(|hop| {
        let rate = i128::from(hop.spec.rate?.as_bits());
        Some((hop, narrow(rate * i128::from(payload) / i128::from(hop.slot_bytes(frame)))))
    });
    rates.min_by_key(|(_, goodput)| *goodput)
}

/// Whole frames that the buffer of a port holds; `None`: it has no bound.
fn held(spec: &PortSpec, frame: u32) -> Option<u64> {
    let by_bytes = spec.queue_bytes.map(|bytes| bytes.as_bytes() / u64::from(frame));
    let by_frames = spec.queue_frames.map(|frames| u64::from(frames.count()));
    [by_bytes, by_frames].into_iter().flatten().min()
}

/// The range of so many thousandths around `value`.
const fn around(value: i64, permille: i64) -> (i64, i64) {
    let off = value / 1000 * permille;
    (value - off, value + off)
}

impl<M: Dom0> Lab<'_, M> {
    pub(super) fn measure(
        &mut self,
        check: &Check,
        report: &mut CheckReport,
    ) -> Result<(), String> {
        match &check.kind {
            Kind::Ping(ping) => self.ping(ping, &check.settings, report),
            Kind::Tcp(tcp) => self.tcp(tcp, &check.settings, report),
            Kind::Overload(overload) => self.overload(overload, &check.settings, report),
            Kind::Processing(processing) => self.processing(processing, report),
            Kind::Equality(equality) => self.equality(equality, &check.settings, report),
            Kind::Cost(cost) => self.cost(cost, report),
            Kind::Idle(idle) => self.idle(idle, report),
        }
    }

    fn pings(&mut self, ping: &Ping) -> Result<Pings, String> {
        let Ping { from, to, count, size, every, .. } = ping;
        let to = self.address(to)?;
        let every = every.ns();
        let seconds = format!("{}.{:06}", every / 1_000_000_000, every / 1_000 % 1_000_000);
        let counters = Pings::COUNTERS;
        let command =
            format!("{counters}; ping -c {count} -i {seconds} -s {size} -W 1 {to}; {counters}");
        let span = every.saturating_mul((*count).into()).saturating_add(2 * SECOND);
        Pings::parse(&self.call(from, &command, span)?.text())
    }

    /// Time of a round trip on ideal ports at the factor of now: what the machine itself adds.
    fn ideal_rtt(&mut self, ping: &Ping) -> Result<i64, String> {
        let key = (ping.from.clone(), ping.to.clone(), ping.size, self.tdf.to_string());
        if let Some(&rtt) = self.ideal_rtt.get(&key) {
            return Ok(rtt);
        }
        self.idealise()?;
        // The first ones find out addresses and places.
        self.pings(&Ping { count: 3, ..ping.clone() })?;
        let pings = self.pings(&Ping { count: 20, ..ping.clone() })?;
        let rtt = pings.typical_ns().ok_or("no ping was answered on ideal ports")?;
        self.ideal_rtt.insert(key, rtt);
        Ok(rtt)
    }

    fn ping(
        &mut self,
        ping: &Ping,
        settings: &[PortSettings],
        report: &mut CheckReport,
    ) -> Result<(), String> {
        let frame = Link::frame(ping.size + PING_HEADERS);
        let there = theory(&self.path(&ping.from, &ping.to, settings), frame);
        let back = theory(&self.path(&ping.to, &ping.from, settings), frame);
        let machine = self.ideal_rtt(ping)?;
        self.apply(settings)?;
        let pings = self.pings(ping)?;
        let exact = there.transit_ns + back.transit_ns;
        // A timer for each port that holds the frame back, and the work of waking up for it: as much
        // again as for a frame that is not held back, at most.
        let slop = narrow(self.tdf.to_virtual(TIMER_SLOP_NS * (there.waits + back.waits)));
        let own = if there.waits + back.waits > 0 { 2 * machine } else { machine * 3 / 2 };
        let range = (exact, exact + own + slop + PING_RESOLUTION_NS);
        let figures = &mut report.figures;
        figures.push(Figure::plain("delays and serialisation", NANOSECONDS, exact));
        figures.push(Figure::plain("on ideal ports", NANOSECONDS, machine));
        if let Some(rtt) = pings.typical_ns() {
            figures.push(Figure::judged("round trip", NANOSECONDS, range, rtt));
            let longest = pings.rtt_ns.iter().copied().max().unwrap_or(0);
            figures.push(Figure::plain("longest of them", NANOSECONDS, longest));
            let whole = exact + machine;
            let off = (rtt - whole) * 10_000 / whole.max(1);
            let what = "off the sum of both";
            figures.push(match ping.within_percent {
                Some(percent) => {
                    let most = i64::from(percent) * 100;
                    Figure::judged(what, "1/10000", (-most, most), off)
                }
                None => Figure::plain(what, "1/10000", off),
            });
        }
        let lost = i64::from(pings.lost());
        match (there.loss, back.loss) {
            (Some(there), Some(back)) => {
                let p = 1.0 - (1.0 - there) * (1.0 - back);
                let (lo, hi) = binomial_interval(pings.sent, p, RISK);
                let range = (i64::from(lo), i64::from(hi));
                figures.push(Figure::judged("lost", "pings", range, lost));
            }
            _ => figures.push(Figure::plain("lost", "pings", lost)),
        }
        Ok(())
    }

    fn serve(&mut self, host: &str) -> Result<(), String> {
        if self.serving.insert(host.to_owned()) {
            self.call(host, "iperf3 -s -D", 1_000_000_000)?;
            // It says nothing when it is ready.
            self.call(host, "usleep 300000", 1_000_000_000)?;
        }
        Ok(())
    }

    /// An iperf3 client; `how` are its options, and `virtual_ns` is how long they make it run.
    fn flow(&mut self, from: &str, to: &str, how: &str, virtual_ns: i64) -> Result<Flow, String> {
        self.serve(to)?;
        let address = self.address(to)?;
        let command = format!("iperf3 -c {address} {how} -J");
        Flow::parse(&self.call(from, &command, virtual_ns + 10_000_000_000)?.text())
    }

    /// A TCP flow that iperf3 makes, and what of it the receiving host had in order, by the stamps of
    /// its kernel: iperf3's own figure is of the time until it saw that all was over.
    fn in_order(
        &mut self,
        from: &str,
        to: &str,
        how: &str,
        after: Option<&str>,
        virtual_ns: i64,
    ) -> Result<(Goodput, Flow), String> {
        self.serve(to)?;
        let sender = self.address(from)?;
        let (longer, limit) = (self.mtu(from, to) / 2, virtual_ns + 10_000_000_000);
        let after = after.map_or_else(String::new, |after| format!(" --after {after}"));
        let job = self.begin(
            to,
            &format!(
                "tdf goodput eth0 --from {sender} --port {IPERF3_PORT} --longer {longer}{after}"
            ),
        )?;
        let flow = self.flow(from, to, how, virtual_ns)?;
        Ok((Goodput::parse(&self.end(job, limit)?.text())?, flow))
    }

    /// Goodput of TCP on ideal ports at the factor of now: what the machine itself can carry.
    fn ideal_tcp(&mut self, from: &str, to: &str) -> Result<i64, String> {
        let key = (from.to_owned(), to.to_owned(), self.tdf.to_string());
        if let Some(&goodput) = self.ideal_tcp.get(&key) {
            return Ok(goodput);
        }
        self.idealise()?;
        let how = format!("-n {CALIBRATION_BYTES} {COUNTED}");
        let goodput = self.in_order(from, to, &how, None, 60_000_000_000)?.0.bits_per_second();
        self.ideal_tcp.insert(key, goodput);
        Ok(goodput)
    }

    /// The largest rate of the port that the machine keeps up with, beforehand; says so if the
    /// scenario asks for more.
    fn predict(
        &mut self,
        from: &str,
        to: &str,
        hop: &Hop,
        (frame, payload): (u32, u32),
        report: &mut CheckReport,
    ) -> Result<(), String> {
        let carried = i128::from(self.ideal_tcp(from, to)?) * i128::from(PROMISED) / 100;
        let most = narrow(carried * i128::from(hop.slot_bytes(frame)) / i128::from(payload));
        let rate = hop.spec.rate.map_or(0, |rate| narrow(rate.as_bits().into()));
        report.figures.push(Figure::at_most("rate, beside the largest", BITS, rate, most));
        if rate > most {
            report.faults.push(format!(
                "it asks for {rate} bit/s; at TDF {} this machine carries {most}: a {} times larger \
                 TDF is needed",
                self.tdf,
                rate / most.max(1) + 1
            ));
        }
        Ok(())
    }

    fn mtu(&self, from: &str, to: &str) -> u32 {
        let mtu = |host| self.network.link_of(host).map_or(1500, |link| link.mtu);
        mtu(from).min(mtu(to))
    }

    fn tcp(
        &mut self,
        tcp: &Tcp,
        settings: &[PortSettings],
        report: &mut CheckReport,
    ) -> Result<(), String> {
        let Tcp { from, to, for_virtual, after, bytes, ecn } = tcp;
        let mtu = self.mtu(from, to);
        let (frame, payload) = (Link::frame(mtu), mtu - TCP_HEADERS);
        let path = self.path(from, to, settings);
        let Some((hop, expected)) = bottleneck(&path, frame, payload) else {
            let goodput = self.ideal_tcp(from, to)?;
            report.figures.push(Figure::plain("goodput, nothing in its way", BITS, goodput));
            return Ok(());
        };
        self.predict(from, to, hop, (frame, payload), report)?;
        self.apply(settings)?;
        let mut marked = (0, 0);
        for host in [from, to] {
            let command = format!("echo {} >/proc/sys/net/ipv4/tcp_ecn", u8::from(*ecn));
            self.call(host, &command, 1_000_000_000)?;
        }
        if *ecn {
            marked = (self.marks(to)?, self.counted(&path, marks_set)?);
        }
        let (seconds, omit) = (for_virtual.ns() / 1_000_000_000, after.ns() / 1_000_000_000);
        let (how, after_text) = match bytes {
            Some(bytes) => (format!("-n {} {COUNTED}", bytes.as_bytes()), None),
            None => (format!("-t {seconds} -O {omit} {SILENT}"), Some(format!("{omit}s"))),
        };
        let most = for_virtual.ns() + after.ns();
        let (goodput, flow) = self.in_order(from, to, &how, after_text.as_deref(), most)?;
        let range = around(expected, GOODPUT_PERMILLE);
        report.figures.push(Figure::judged("goodput", BITS, range, goodput.bits_per_second()));
        report.figures.push(Figure::plain("received", "bytes", narrow(goodput.bytes.into())));
        let retransmits = narrow(flow.retransmits.into());
        report.figures.push(Figure::plain("sent again", "segments", retransmits));
        if retransmits > 0 {
            // What comes behind a segment that is missing does not count until that one has been sent
            // again: a round trip through the full queue, or two of them.
            let there = theory(&path, frame).transit_ns;
            let back = theory(&self.path(to, from, settings), Link::frame(TCP_HEADERS)).transit_ns;
            let queue = held(&hop.spec, frame).unwrap_or(0) * hop.slot_bytes(frame);
            let round = there + back + narrow(hop.serialisation_ns(queue).into());
            let span = bytes.map_or(for_virtual.ns(), |bytes| {
                let bits = i128::from(bytes.as_bytes()) * 8;
                narrow(bits * 1_000_000_000 / i128::from(expected.max(1)))
            });
            let (late, most) = (2 * round * 1000 / span.max(1), GOODPUT_PERMILLE);
            report.figures.push(Figure::at_most("not yet in order", "1/1000", late, most));
        }
        if *ecn {
            let seen = self.marks(to)? - marked.0;
            let set = self.counted(&path, marks_set)? - marked.1;
            report.figures.push(Figure::at_least("marks seen", "frames", 1, seen));
            report.figures.push(Figure::judged("marks set", "frames", (seen, seen), set));
        }
        Ok(())
    }

    /// Frames with the mark of congestion that a host has seen since it booted.
    fn marks(&mut self, host: &str) -> Result<i64, String> {
        let text = self.call(host, "cat /proc/net/netstat", 1_000_000_000)?.text();
        netstat(&text, "IpExt:", "InCEPkts").ok_or_else(|| format!("{host} counts no marks"))
    }

    /// What the counters of the path's ports say, added up.
    fn counted(&mut self, path: &[Hop], of: fn(&Value) -> Option<i64>) -> Result<i64, String> {
        let mut sum = 0;
        for hop in path {
            let Some((switch, port)) = self.ports[hop.link] else { continue };
            let (_, counters) = self.control().counters(switch).map_err(|e| e.to_string())?;
            let counters = counters.iter().find(|(number, _)| *number == port);
            sum += counters.and_then(|(_, json)| of(json)).unwrap_or(0);
        }
        Ok(sum)
    }

    fn overload(
        &mut self,
        overload: &Overload,
        settings: &[PortSettings],
        report: &mut CheckReport,
    ) -> Result<(), String> {
        let Overload { from, to, rate, count } = overload;
        let payload = self.mtu(from, to) - UDP_HEADERS;
        let frame = Link::frame(payload + UDP_HEADERS);
        let (there, back) = (self.path(from, to, settings), self.path(to, from, settings));
        let Some((hop, goodput)) = bottleneck(&there, frame, payload) else {
            return Err("no port on the way has a rate".to_owned());
        };
        // A full buffer holds whole frames; the port is done with them one slot after another.
        let spec = &hop.spec;
        let held = held(spec, frame).ok_or("the port's queue has no bound")?;
        let slot = hop.slot_bytes(frame);
        let drain = |frames: u64| narrow(hop.serialisation_ns(frames * slot).into());
        // One ping at a time in the buffer, where it would be a short frame in a long one's place. And
        // never in step with the frames that leave, or all pings would find room, or none: the golden
        // section of a slot more visits a slot's parts evenly.
        let least = PING_INTERVAL_NS / drain(1).max(1);
        let frames = held.saturating_add(2).max(least.unsigned_abs());
        let every = drain(frames).saturating_add(drain(1).saturating_mul(618) / 1000);
        let ping = Ping {
            from: from.clone(),
            to: to.clone(),
            count: *count,
            size: 56,
            every: span(every),
            within_percent: None,
        };
        let machine = self.ideal_rtt(&ping)?;
        let small = Link::frame(ping.size + PING_HEADERS);
        let exact = theory(&there, small).transit_ns + theory(&back, small).transit_ns;
        let waits = theory(&there, small).waits + theory(&back, small).waits;
        let slop = narrow(self.tdf.to_virtual(TIMER_SLOP_NS * waits));
        // A ping gets in when there is room: behind a buffer that lacks two frames at most.
        let range =
            (exact + drain(held.saturating_sub(2)), exact + drain(held) + 2 * machine + slop);
        self.apply(settings)?;
        let bits = rate.parse::<switch_model::Rate>().map_err(|e| e.to_string())?.as_bits();
        self.serve(to)?;
        let address = self.address(to)?;
        // Longer than the connection takes to stand, the buffer to fill, and all pings.
        let pings = every.saturating_mul((*count).into()) / SECOND;
        let seconds = 2 + i64::from(FILLING_TRIES) / 10 + pings;
        let dropped = self.counted(&there, queue_full)?;
        let job = self.begin(
            from,
            &format!("iperf3 -c {address} -u -b {bits} -l {payload} -t {seconds} {SILENT} -J"),
        )?;
        // Until the connection stands and the buffer is full: something did not get in.
        let mut tries = 0;
        while self.counted(&there, queue_full)? == dropped {
            tries += 1;
            if tries > FILLING_TRIES {
                return Err("the port's buffer was never full".to_owned());
            }
            self.call(from, "usleep 100000", 1_000_000_000)?;
        }
        let pings = self.pings(&ping)?;
        let flow = Flow::parse(&self.end(job, 10_000_000_000 + seconds * 1_000_000_000)?.text())?;
        let rtt = pings.typical_ns().ok_or("no ping came through the full queue")?;
        let offered = narrow(bits.into());
        report.figures.push(Figure::at_least("offered, above the port's", BITS, goodput, offered));
        report.figures.push(Figure::judged("round trip", NANOSECONDS, range, rtt));
        for (what, rtt) in [
            ("shortest of them", pings.rtt_ns.iter().min()),
            ("longest of them", pings.rtt_ns.iter().max()),
        ] {
            report.figures.push(Figure::plain(what, NANOSECONDS, rtt.copied().unwrap_or(0)));
        }
        report.figures.push(Figure::plain("goodput", BITS, flow.goodput as i64));
        Ok(())
    }

    fn processing(
        &mut self,
        processing: &Processing,
        report: &mut CheckReport,
    ) -> Result<(), String> {
        let Processing { from, to, count, factors } = processing;
        self.idealise()?;
        let mut first: Option<(Tdf, i64)> = None;
        report.tdf = "-".to_owned();
        for text in factors {
            let tdf: Tdf = text.parse().map_err(|e| format!("{text:?}: {e}"))?;
            self.dilate(tdf)?;
            let (from, to) = (from.clone(), to.clone());
            let every = span(20_000_000);
            let ping = Ping { from, to, count: *count, size: 56, every, within_percent: None };
            self.pings(&Ping { count: 3, ..ping.clone() })?;
            let rtt = self.pings(&ping)?.typical_ns().ok_or("no ping was answered")?;
            let what = format!("round trip at TDF {tdf}");
            report.figures.push(match first {
                None => {
                    first = Some((tdf, rtt));
                    Figure::plain(&what, NANOSECONDS, rtt)
                }
                Some((tdf0, rtt0)) => {
                    let expected = narrow(tdf.to_virtual(tdf0.to_real(rtt0.into())));
                    let off = expected * SHRINK_PERCENT / 100 + PING_RESOLUTION_NS;
                    let range = (expected - off, expected + off);
                    Figure::judged(&what, NANOSECONDS, range, rtt)
                }
            });
        }
        Ok(())
    }

    fn equality(
        &mut self,
        equality: &Equality,
        settings: &[PortSettings],
        report: &mut CheckReport,
    ) -> Result<(), String> {
        let Equality { from, to, for_virtual, frames, skip, factors } = equality;
        let seconds = for_virtual.ns() / 1_000_000_000;
        let mut runs: Vec<(Tdf, i64, Vec<i64>)> = Vec::new();
        report.tdf = "-".to_owned();
        for text in factors {
            let tdf: Tdf = text.parse().map_err(|e| format!("{text:?}: {e}"))?;
            self.dilate(tdf)?;
            // The same state of the ports for each factor: they begin anew.
            self.idealise()?;
            self.apply(settings)?;
            self.serve(to)?;
            let least = self.mtu(from, to) / 2;
            let job = self.begin(
                to,
                &format!(
                    "tdf arrivals eth0 {} --longer {least} | tail -n +{}",
                    skip + frames,
                    skip + 1
                ),
            )?;
            let how = format!("-t {seconds} -O {seconds} {SILENT}");
            let flow = self.flow(from, to, &how, 2 * for_virtual.ns())?;
            let answer = self.end(job, 2 * for_virtual.ns())?;
            let gaps = answer.lines.iter().map(|line| line.parse::<i64>());
            let gaps: Vec<i64> = gaps.collect::<Result<_, _>>().map_err(|e| e.to_string())?;
            runs.push((tdf, flow.goodput as i64, gaps));
        }
        let payload = i128::from(self.mtu(from, to) - TCP_HEADERS) * 8_000_000_000;
        let arriving = |gaps: &[i64]| {
            let whole = gaps.iter().map(|&gap| i128::from(gap)).sum::<i128>().max(1);
            narrow(payload * gaps.len() as i128 / whole)
        };
        let first = runs.first().map(|(tdf, _, gaps)| (*tdf, arriving(gaps), gaps.clone()));
        let Some((tdf0, goodput0, gaps0)) = first else { return Ok(()) };
        for (tdf, by_iperf3, gaps) in &runs {
            let goodput = arriving(gaps);
            let what = format!("goodput at TDF {tdf}, as it arrives");
            report.figures.push(Figure::judged(
                &what,
                BITS,
                around(goodput0, EQUAL_PERMILLE),
                goodput,
            ));
            let what = format!("goodput at TDF {tdf}, by iperf3");
            report.figures.push(Figure::plain(&what, BITS, *by_iperf3));
            let longest = gaps.iter().copied().max().unwrap_or(0);
            let what = format!("longest gap at TDF {tdf}");
            report.figures.push(Figure::plain(&what, NANOSECONDS, longest));
            if *tdf != tdf0 {
                let distance = (ks_distance(&gaps0, gaps) * 10_000.0).round() as i64;
                let limit = (ks_limit(gaps0.len(), gaps.len()) * 10_000.0) as i64;
                let what = format!("K-S distance of gaps, TDF {tdf} and {tdf0}");
                report.figures.push(Figure::at_most(&what, "1/10000", distance, limit));
            }
        }
        let curves: Vec<(String, Vec<i64>)> =
            runs.into_iter().map(|(tdf, _, gaps)| (format!("TDF {tdf}"), gaps)).collect();
        report.plot = Some(plot::distributions(
            "Gaps between arriving frames of one TCP flow",
            "us of virtual time",
            1000.0,
            &curves,
        ));
        Ok(())
    }

    /// Processor time so far, ns.
    fn spent(&mut self) -> Result<Spent, String> {
        let mut spent = Spent::default();
        for listed in self.hosts.listed() {
            let ns = self.control().cpu_time_ns(listed.id).map_err(|e| e.to_string())?;
            let link = self.network.link_of(&listed.name);
            let host = link.is_some_and(|link| link.address.is_some());
            *if host { &mut spent.hosts } else { &mut spent.switches } += narrow(ns.into());
        }
        let dom0 = self.control().cpu_time_ns(DomId(0)).map_err(|e| e.to_string())?;
        spent.dom0 = narrow(dom0.into());
        Ok(spent)
    }

    fn received(&mut self, host: &str) -> Result<i64, String> {
        let command = "cat /sys/class/net/eth0/statistics/rx_packets";
        let text = self.call(host, command, 1_000_000_000)?.text();
        text.trim().parse().map_err(|_| format!("{host} counts no frames"))
    }

    /// Processor time of one way, and the frames that arrived: `how` tells iperf3 how many to send.
    fn burst(
        &mut self,
        [from, to]: &[String; 2],
        how: &str,
        virtual_ns: i64,
    ) -> Result<Spent, String> {
        self.serve(to)?;
        let (received, before) = (self.received(to)?, self.spent()?);
        let address = self.address(to)?;
        // What it would tell on its console dom0 would have to read.
        let command = format!("iperf3 -c {address} {how} >/dev/null");
        self.call(from, &command, virtual_ns + 10_000_000_000)?;
        let (after, received_after) = (self.spent()?, self.received(to)?);
        Ok(Spent { frames: received_after - received, ..after.minus(&before) })
    }

    /// Processor time of one way: of a long run, less a short one, so that what the beginning, the
    /// end and the measurement itself cost is not counted.
    fn way(&mut self, ends: &[String; 2], size: u32, load: &Load) -> Result<Spent, String> {
        let payload = size - CHECK_SEQUENCE - crate::network::ETHERNET_HEADER - UDP_HEADERS;
        let (short, long, longest_ns) = match load.per_second {
            Some(frames) => {
                let bits = u64::from(payload) * 8 * u64::from(frames);
                let seconds = 1 + i64::from(load.frames.div_ceil(frames));
                let how = |seconds| format!("-u -b {bits} -l {payload} -t {seconds} {SILENT}");
                (how(1), how(seconds), seconds * SECOND)
            }
            None => {
                let count = SHORT_FLOOD.saturating_add(load.frames);
                let how = |count| format!("-u -b 0 -l {payload} -k {count} {COUNTED}");
                (how(SHORT_FLOOD), how(count), i64::from(count / SLOWEST_FLOOD) * SECOND)
            }
        };
        let short = self.burst(ends, &short, longest_ns)?;
        let spent = self.burst(ends, &long, longest_ns)?.minus(&short);
        match spent.frames {
            ..=0 => Err("the longer run brought no more frames".to_owned()),
            _ => Ok(spent),
        }
    }

    fn cost(&mut self, cost: &Cost, report: &mut CheckReport) -> Result<(), String> {
        self.idealise()?;
        for ends in [&cost.ours, &cost.theirs] {
            // A program's first run in a host takes seconds for random numbers.
            self.burst(ends, &format!("-u -l 100 -k 10 {COUNTED}"), SECOND)?;
        }
        for load in &cost.loads {
            for &size in &cost.sizes {
                let mut network = Vec::new();
                let about = format!("{}, {size} B", load.name());
                for (name, ends) in [("theirs", &cost.theirs), ("ours", &cost.ours)] {
                    let spent = self.way(ends, size, load)?;
                    let mut plain = |what: &str, unit, value| {
                        let what = format!("{about}, {name}: {what}");
                        report.figures.push(Figure::plain(&what, unit, value));
                    };
                    plain("frames", "frames", spent.frames);
                    plain("dom0", PER_FRAME, spent.dom0 / spent.frames);
                    plain("switch", PER_FRAME, spent.switches / spent.frames);
                    plain("hosts", PER_FRAME, spent.hosts / spent.frames);
                    let (network_ns, all_ns) = spent.per_frame();
                    plain("one processor, as network", PER_SECOND, SECOND / network_ns);
                    plain("one processor, with hosts", PER_SECOND, SECOND / all_ns);
                    network.push(network_ns);
                }
                let ratio = network[0] * 100 / network[1];
                let least = i64::from(load.ratio_percent);
                let what = format!("{about}, theirs / ours: dom0 + switch");
                report.figures.push(Figure::at_least(&what, "1/100", least, ratio));
            }
        }
        Ok(())
    }

    /// A silent network: its switch sleeps, for nobody wakes it, and has all its memory for frames.
    fn idle(&mut self, idle: &Idle, report: &mut CheckReport) -> Result<(), String> {
        let Idle { switch, for_virtual } = idle;
        let id = self.hosts.id(switch).ok_or_else(|| format!("there is no switch {switch}"))?;
        let silence = |lab: &mut Self, ns: i64| {
            let real = u64::try_from(lab.tdf.to_real(ns.into())).unwrap_or(u64::MAX);
            let until = lab.control().machine.now() + Duration::from_nanos(real);
            while lab.control().machine.now() < until {
                lab.hosts.listen(lab.run.control, Duration::from_nanos(real))?;
            }
            Ok::<(), String>(())
        };
        let (all, _) = self.control().counters(id).map_err(|e| e.to_string())?;
        // Until it has answered that, and what is still on its way has arrived.
        silence(self, SECOND)?;
        let before = self.control().cpu_time_ns(id).map_err(|e| e.to_string())?;
        silence(self, for_virtual.ns())?;
        let after = self.control().cpu_time_ns(id).map_err(|e| e.to_string())?;
        let figures = &mut report.figures;
        let up = self.ports.iter().flatten().filter(|(of, _)| *of == id).count();
        figures.push(Figure::plain("ports that are up", "ports", narrow(up as i128)));
        let spent = narrow(i128::from(after) - i128::from(before));
        figures.push(Figure::at_most("processor time", NANOSECONDS, spent, 0));
        let counter = |key: &str| {
            all[key].as_i64().ok_or_else(|| format!("{switch} does not count its {key}"))
        };
        let (free, total) = (counter("pool_free")?, counter("pool_total")?);
        figures.push(Figure::judged("free pieces of memory", "pieces", (total, total), free));
        figures.push(Figure::at_least("free heap", "bytes", 1, counter("heap_free")?));
        Ok(())
    }
}

/// Processor time, ns, and what it was spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spent {
    dom0: i64,
    switches: i64,
    hosts: i64,
    /// Frames that were received meanwhile.
    frames: i64,
}

impl Spent {
    const fn minus(&self, other: &Self) -> Self {
        Self {
            dom0: self.dom0 - other.dom0,
            switches: self.switches - other.switches,
            hosts: self.hosts - other.hosts,
            frames: self.frames - other.frames,
        }
    }

    /// Processor time for each frame, of which there is one: of the network, and of all; ns, and never 0.
    const fn per_frame(&self) -> (i64, i64) {
        let network = (self.dom0 + self.switches) / self.frames;
        let all = (self.dom0 + self.switches + self.hosts) / self.frames;
        (if network > 0 { network } else { 1 }, if all > 0 { all } else { 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use switch_model::{Framing, Rate, Span};

    fn hop(spec: PortSpec) -> Hop {
        Hop { link: 0, spec }
    }

    #[test]
    fn a_path_takes_the_sum_of_its_exact_times() {
        // A5 of the research: three links, two switches, 1526 B with preamble, 500 ns a link.
        for (rate, ns) in
            [(Rate::gbit(1), 38_124), (Rate::gbit(10), 5_160), (Rate::gbit(100), 1_866)]
        {
            let spec = PortSpec {
                rate: Some(rate),
                delay: Span::ns(500),
                framing: Framing::ETHERNET,
                ..PortSpec::IDEAL
            };
            let all = theory(&[hop(spec); 3], 1514);
            // The floor of each hop is taken alone: up to 1 ns for each is lost.
            assert!((ns..=ns + 3).contains(&all.transit_ns), "{}", all.transit_ns);
            assert_eq!((all.waits, all.loss), (3, Some(0.0)));
        }
    }

    #[test]
    fn the_bottleneck_is_where_the_least_payload_fits() {
        let with = |rate| {
            hop(PortSpec { rate: Some(rate), framing: Framing::ETHERNET, ..PortSpec::IDEAL })
        };
        let path = [with(Rate::gbit(1)), with(Rate::mbit(100)), hop(PortSpec::IDEAL)];
        let (hop, goodput) = bottleneck(&path, 1514, 1448).unwrap();
        assert_eq!(hop.spec.rate, Some(Rate::mbit(100)));
        assert_eq!(goodput, 100_000_000 * 1448 / 1538);
        assert!(bottleneck(&path[2..], 1514, 1448).is_none());
    }
}
