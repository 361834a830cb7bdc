// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xenbus: how the two ends of a device find each other, lose each other, and meet again.
//!
//! Each end shows a state in xenstore and watches the other's. What to do next is a pure function of
//! the two states: [`backend`] and [`frontend`] are asked again and again until they say
//! [`Step::Stay`], after each change of anything. A peer whose node is gone, or says nonsense, is one
//! that has closed.

use core::fmt;

/// `enum xenbus_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// Nothing is known: the node is not there.
    Unknown = 0,
    /// It gets ready.
    Initialising = 1,
    /// The backend has said what it can do, and waits for the frontend.
    InitWait = 2,
    /// The frontend has said what it wants (block devices).
    Initialised = 3,
    /// It is in use.
    Connected = 4,
    /// It lets go.
    Closing = 5,
    /// It has let go.
    Closed = 6,
    /// It changes.
    Reconfiguring = 7,
    /// It has changed.
    Reconfigured = 8,
}

impl State {
    /// All of them, by number.
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Initialising,
        Self::InitWait,
        Self::Initialised,
        Self::Connected,
        Self::Closing,
        Self::Closed,
        Self::Reconfiguring,
        Self::Reconfigured,
    ];

    /// The state that a node's value tells; nonsense is [`Self::Unknown`].
    pub fn from_value(value: &[u8]) -> Self {
        match value {
            [digit @ b'0'..=b'8'] => Self::ALL[usize::from(digit - b'0')],
            _ => Self::Unknown,
        }
    }

    /// What the node's value is to be.
    pub fn value(self) -> &'static [u8] {
        match self {
            Self::Unknown => b"0",
            Self::Initialising => b"1",
            Self::InitWait => b"2",
            Self::Initialised => b"3",
            Self::Connected => b"4",
            Self::Closing => b"5",
            Self::Closed => b"6",
            Self::Reconfiguring => b"7",
            Self::Reconfigured => b"8",
        }
    }

    /// Whether an end in this state uses nothing of the other, or is about to stop.
    fn is_leaving(self) -> bool {
        matches!(self, Self::Unknown | Self::Closing | Self::Closed)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Initialising => "initialising",
            Self::InitWait => "waiting for the frontend",
            Self::Initialised => "initialised",
            Self::Connected => "connected",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Reconfiguring => "reconfiguring",
            Self::Reconfigured => "reconfigured",
        })
    }
}

/// What an end is to do next, and which state it shows afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing, until something changes.
    Stay,
    /// Start: a backend writes what it can do and shows [`State::InitWait`], a frontend shows
    /// [`State::Initialising`]. All that was used before must have been given back.
    Start,
    /// A backend reads what the frontend has written, maps it and shows [`State::Connected`]; a
    /// frontend grants, writes what it has, and shows the same. If that cannot be done: as after
    /// [`Self::Disconnect`].
    Connect,
    /// Stop using anything of the other end, and show [`State::Closing`].
    Disconnect,
    /// Show [`State::Closed`].
    Close,
    /// A backend that nobody wants any more: remove its directory, and forget it.
    Remove,
}

impl Step {
    /// The state that an end shows after the step, if the step changes it.
    pub fn shows(self, is_backend: bool) -> Option<State> {
        match self {
            Self::Stay | Self::Remove => None,
            Self::Start if is_backend => Some(State::InitWait),
            Self::Start => Some(State::Initialising),
            Self::Connect => Some(State::Connected),
            Self::Disconnect => Some(State::Closing),
            Self::Close => Some(State::Closed),
        }
    }
}

/// What a backend in state `own` does about a frontend in state `front`.
///
/// `own` is what the backend last showed, not what xenstore says: the toolstack writes there too.
/// `online` is whether the toolstack still wants the device, `broken` whether the frontend has shown
/// itself to be faulty since it connected.
pub fn backend(own: State, front: State, online: bool, broken: bool) -> Step {
    match (own, front) {
        // The toolstack made the directory.
        (State::Unknown | State::Initialising, State::Unknown) => Step::Close,
        (State::Unknown | State::Initialising, _) => Step::Start,

        (State::InitWait, State::Connected) => Step::Connect,
        (State::InitWait, front) if front.is_leaving() => Step::Disconnect,
        (State::InitWait, _) => Step::Stay,

        // One that starts anew has forgotten what it gave us.
        (State::Connected, State::Initialising | State::InitWait) => Step::Disconnect,
        (State::Connected, front) if broken || front.is_leaving() => Step::Disconnect,
        (State::Connected, _) => Step::Stay,

        (State::Closing, State::Unknown | State::Closed | State::Initialising) => Step::Close,
        (State::Closing, _) => Step::Stay,

        (State::Closed, State::Unknown) => Step::Remove,
        (State::Closed, State::Closed) if !online => Step::Remove,
        (State::Closed, State::Initialising) if online => Step::Start,
        (State::Closed, _) => Step::Stay,

        // A backend of this project shows no others.
        (State::Initialised | State::Reconfiguring | State::Reconfigured, _) => Step::Disconnect,
    }
}

/// What a frontend in state `own` does about a backend in state `back`.
///
/// `ready` is whether everything that was granted before has been taken back, so that it may start
/// anew; a frontend that does not want to says `false`. `broken` is whether the backend has shown
/// itself to be faulty since it connected.
pub fn frontend(own: State, back: State, ready: bool, broken: bool) -> Step {
    match (own, back) {
        (State::Initialising, State::InitWait) => Step::Connect,
        (State::Initialising, _) => Step::Stay,

        (State::Connected, back) if broken || back.is_leaving() => Step::Disconnect,
        (State::Connected, _) => Step::Stay,

        // A backend waits for this before it closes itself.
        (State::Closing, _) => Step::Close,

        (State::Unknown | State::Closed, State::Initialising | State::InitWait | State::Closed)
            if ready =>
        {
            Step::Start
        }
        (State::Unknown | State::Closed, _) => Step::Stay,

        // A frontend of this project shows no others.
        (State::InitWait | State::Initialised | State::Reconfiguring | State::Reconfigured, _) => {
            Step::Disconnect
        }
    }
}

/// Names of the nodes.
pub mod keys {
    /// An end's [`State`](super::State).
    pub const STATE: &str = "state";
    /// In a backend's directory: where its frontend's is.
    pub const FRONTEND: &str = "frontend";
    /// In a backend's directory: the frontend's domain.
    pub const FRONTEND_ID: &str = "frontend-id";
    /// In a frontend's directory: where its backend's is.
    pub const BACKEND: &str = "backend";
    /// In a frontend's directory: the backend's domain.
    pub const BACKEND_ID: &str = "backend-id";
    /// In a backend's directory: 0 if the toolstack wants it no more.
    pub const ONLINE: &str = "online";
    /// In a backend's directory: what became of the script that attaches it to a network.
    pub const HOTPLUG_STATUS: &str = "hotplug-status";
    /// The number of the device.
    pub const HANDLE: &str = "handle";
    /// The address that the frontend is to have.
    pub const MAC: &str = "mac";
    /// Most bytes of a frame's payload.
    pub const MTU: &str = "mtu";

    /// Backend: frames may have several slots. Frontend: so may those that it gets.
    pub const FEATURE_SG: &str = "feature-sg";
    /// Backend: it copies frames into the frontend's pages.
    pub const FEATURE_RX_COPY: &str = "feature-rx-copy";
    /// Backend: it can put frames into the frontend's place (long gone).
    pub const FEATURE_RX_FLIP: &str = "feature-rx-flip";
    /// Frontend: it tells of new receive slots by event.
    pub const FEATURE_RX_NOTIFY: &str = "feature-rx-notify";
    /// Frontend: frames must come with their checksums.
    pub const FEATURE_NO_CSUM_OFFLOAD: &str = "feature-no-csum-offload";
    /// Either: checksums of IPv6 may be left blank.
    pub const FEATURE_IPV6_CSUM_OFFLOAD: &str = "feature-ipv6-csum-offload";
    /// Either: TCP over IPv4 need not be cut into segments.
    pub const FEATURE_GSO_TCPV4: &str = "feature-gso-tcpv4";
    /// Either: the same over IPv6.
    pub const FEATURE_GSO_TCPV6: &str = "feature-gso-tcpv6";
    /// Backend: there may be an event channel for each ring.
    pub const FEATURE_SPLIT_EVENT_CHANNELS: &str = "feature-split-event-channels";
    /// Backend: it filters multicast if asked to.
    pub const FEATURE_MULTICAST_CONTROL: &str = "feature-multicast-control";
    /// Backend: most pairs of rings.
    pub const MULTI_QUEUE_MAX_QUEUES: &str = "multi-queue-max-queues";

    /// Frontend: it wants frames copied.
    pub const REQUEST_RX_COPY: &str = "request-rx-copy";
    /// Frontend: the page of the transmit ring.
    pub const TX_RING_REF: &str = "tx-ring-ref";
    /// Frontend: the page of the receive ring.
    pub const RX_RING_REF: &str = "rx-ring-ref";
    /// Frontend: its event channel.
    pub const EVENT_CHANNEL: &str = "event-channel";
    /// Frontend: its event channel for the transmit ring alone.
    pub const EVENT_CHANNEL_TX: &str = "event-channel-tx";
    /// Frontend: its event channel for the receive ring alone.
    pub const EVENT_CHANNEL_RX: &str = "event-channel-rx";
    /// Frontend: pairs of rings.
    pub const MULTI_QUEUE_NUM_QUEUES: &str = "multi-queue-num-queues";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn values_are_numbers_and_nonsense_is_unknown() {
        for (number, state) in State::ALL.into_iter().enumerate() {
            assert_eq!(state as usize, number);
            assert_eq!(state.value(), number.to_string().as_bytes());
            assert_eq!(State::from_value(state.value()), state);
        }
        for nonsense in [&b""[..], b"9", b"44", b" 4", b"\xff", b"4\0"] {
            assert_eq!(State::from_value(nonsense), State::Unknown);
        }
    }

    /// Steps until nothing is left to do.
    fn settle(
        mut own: State,
        is_backend: bool,
        next: impl Fn(State) -> Step,
    ) -> (State, Vec<Step>) {
        let mut steps = Vec::new();
        loop {
            let step = next(own);
            if step == Step::Stay {
                return (own, steps);
            }
            steps.push(step);
            if step == Step::Remove {
                return (own, steps);
            }
            own = step.shows(is_backend).unwrap();
            assert!(steps.len() <= 4, "never settles: {steps:?}");
        }
    }

    #[test]
    fn each_end_settles_whatever_the_other_shows() {
        for own in State::ALL {
            for peer in State::ALL {
                for online in [false, true] {
                    let broken = false;
                    settle(own, true, |own| backend(own, peer, online, broken));
                    settle(own, false, |own| frontend(own, peer, online, broken));
                }
            }
        }
    }

    /// Nothing of the other's is used unless both have said so, and all is given back before the
    /// next beginning.
    #[test]
    fn what_was_connected_is_disconnected_before_anything_else() {
        for peer in State::ALL {
            for flags in 0..4 {
                let (a, b) = (flags & 1 != 0, flags & 2 != 0);
                for is_backend in [false, true] {
                    let next = |own| match is_backend {
                        true => backend(own, peer, a, b),
                        false => frontend(own, peer, a, b),
                    };
                    let first = next(State::Connected);
                    assert!(matches!(first, Step::Stay | Step::Disconnect), "{first:?}");
                    for own in State::ALL {
                        if next(own) == Step::Connect {
                            let wanted = match is_backend {
                                true => (State::InitWait, State::Connected),
                                false => (State::Initialising, State::InitWait),
                            };
                            assert_eq!((own, peer), wanted);
                        }
                    }
                }
            }
        }
    }

    /// A world of both ends, in which each moves one step at a time.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    struct World {
        back: State,
        front: State,
        online: bool,
        removed: bool,
    }

    impl World {
        fn moves(self) -> Vec<Self> {
            let mut moves = Vec::new();
            if !self.removed {
                match backend(self.back, self.front, self.online, false) {
                    Step::Stay => {}
                    Step::Remove => {
                        moves.push(Self { removed: true, back: State::Unknown, ..self })
                    }
                    step => moves.push(Self { back: step.shows(true).unwrap(), ..self }),
                }
            }
            let ready = self.online;
            if let Some(front) = frontend(self.front, self.back, ready, false).shows(false) {
                moves.push(Self { front, ..self });
            }
            moves
        }

        /// Every world from which nothing moves any more, by all orders of moves.
        fn ends(self) -> Vec<Self> {
            let mut seen = BTreeSet::new();
            let mut ends = Vec::new();
            let mut todo = vec![self];
            while let Some(world) = todo.pop() {
                let key = (world.back as u8, world.front as u8, world.removed);
                if seen.insert(key) {
                    let moves = world.moves();
                    if moves.is_empty() {
                        ends.push(world);
                    }
                    todo.extend(moves);
                }
            }
            ends
        }
    }

    #[test]
    fn two_ends_meet_in_every_order_from_wherever_the_frontend_is() {
        let online = true;
        for front in [State::Initialising, State::Closed, State::Closing] {
            for back in [State::Initialising, State::InitWait, State::Connected, State::Closing] {
                let world = World { back, front, online, removed: false };
                let met = World { back: State::Connected, front: State::Connected, ..world };
                assert_eq!(world.ends(), [met], "{world:?}");
            }
        }
    }

    #[test]
    fn a_device_that_is_not_wanted_goes_away_in_every_order() {
        for back in [State::InitWait, State::Connected, State::Closing, State::Closed] {
            // The frontend is gone with its domain.
            let front = State::Unknown;
            for online in [false, true] {
                let (end, steps) = settle(back, true, |own| backend(own, front, online, false));
                assert_eq!((end, steps.last()), (State::Closed, Some(&Step::Remove)), "{back}");
            }
            // The toolstack takes it away: the backend's node says that it closes.
            let world = World { back, front: State::Closing, online: false, removed: false };
            for end in world.ends() {
                assert!(end.removed && end.front == State::Closed, "{world:?} {end:?}");
            }
        }
    }

    #[test]
    fn a_faulty_peer_is_left_and_met_again_only_anew() {
        let step = backend(State::Connected, State::Connected, true, true);
        assert_eq!(step, Step::Disconnect);
        // It is in no hurry.
        for own in [State::Closing, State::Closed] {
            assert_eq!(backend(own, State::Connected, true, true), Step::Stay);
        }
        assert_eq!(backend(State::Closing, State::Closed, true, true), Step::Close);
        assert_eq!(backend(State::Closed, State::Initialising, true, true), Step::Start);

        assert_eq!(frontend(State::Connected, State::Connected, false, true), Step::Disconnect);
        assert_eq!(frontend(State::Closing, State::Connected, false, true), Step::Close);
        // Grants that are still in use keep it from starting.
        assert_eq!(frontend(State::Closed, State::Closed, false, true), Step::Stay);
        assert_eq!(frontend(State::Closed, State::Closed, true, true), Step::Start);
    }
}
