//! What may happen to a link, at random.

use proptest::option;
use proptest::prelude::*;

/// Four users of two services; most steps are about one of them, so that they meet.
pub(super) const LINKS: [(&str, &str); 6] = [
    ("a", "svc"),
    ("a", "chat"),
    ("b", "svc"),
    ("b", "chat"),
    ("a:lk:b", "svc"),
    ("ü", "chat"),
];

/// Greater than every token: scripts count exactly up to here.
pub(super) const LIMIT: u64 = 1 << 53;

#[derive(Debug, Clone)]
pub(super) struct Step {
    pub(super) link: usize,
    pub(super) act: Act,
}

/// One operation, or what happens without podlink. Times are in seconds, whole minutes.
#[derive(Debug, Clone)]
pub(super) enum Act {
    SetIfAbsent {
        pod: u32,
        ttl: u64,
    },
    TrySet {
        pod: u32,
        ttl: Option<u64>,
    },
    /// A greater incarnation is the pod after a restart.
    Claim {
        pod: u32,
        incarnation: u64,
        certified: Option<(u32, u64)>,
        above: Above,
    },
    Swap {
        found: Pick,
        to: To,
    },
    Relink {
        from: From,
        dead: u64,
        to: u32,
        ttl: u64,
    },
    Set {
        pod: u32,
        ttl: Option<u64>,
    },
    Remove {
        owner: Option<u32>,
        grace: Option<u64>,
    },
    /// The link's time is over, if it has one.
    Expire,
    /// A day is over.
    Day,
    /// Another program writes. No other program can write to memory.
    Foreign(Foreign),
}

/// The token that a claim must exceed.
#[derive(Debug, Clone)]
pub(super) enum Above {
    Any,
    /// One that was given, the last first, and so much more.
    Given {
        back: usize,
        more: u64,
    },
    /// Almost the greatest token.
    Most,
}

/// What a compare-and-set expects.
#[derive(Debug, Clone)]
pub(super) enum Pick {
    /// What was read, the last first.
    Read { back: usize },
    /// Ownership by a token that was given, or by one near it.
    Owned {
        back: usize,
        incarnation: u64,
        token: u64,
    },
}

#[derive(Debug, Clone)]
pub(super) enum To {
    Nothing,
    Link(u32, Option<u64>),
    Owned {
        pod: u32,
        incarnation: u64,
        above: Above,
    },
}

#[derive(Debug, Clone)]
pub(super) enum From {
    /// What was read, the last first.
    Read { back: usize },
    /// A link without an owner.
    Guess { pod: u32, persistent: bool },
}

#[derive(Debug, Clone)]
pub(super) enum Foreign {
    Link(&'static str, Option<u64>),
    Unlink,
    /// The user's last token.
    Last(String),
    /// The last token is so much later than the server's time: its clock stepped back.
    Ahead(u64),
    Record(String),
    /// All records of the user are lost.
    Lose,
}

fn pod() -> impl Strategy<Value = u32> {
    0_u32..3
}

fn incarnation() -> impl Strategy<Value = u64> {
    1_u64..4
}

fn ttl() -> impl Strategy<Value = u64> {
    (1_u64..6).prop_map(|minutes| minutes * 60)
}

fn above() -> impl Strategy<Value = Above> {
    let more = prop_oneof![3 => Just(0), 1 => Just(10_000_000_000)];
    prop_oneof![
        20 => Just(Above::Any),
        10 => (0_usize..3, more).prop_map(|(back, more)| Above::Given { back, more }),
        1 => Just(Above::Most),
    ]
}

fn pick() -> impl Strategy<Value = Pick> {
    let near = || prop_oneof![6 => Just(0_u64), 1 => Just(1_u64)];
    prop_oneof![
        4 => (0_usize..3).prop_map(|back| Pick::Read { back }),
        3 => (0_usize..3, near(), near()).prop_map(|(back, incarnation, token)| Pick::Owned {
            back,
            incarnation,
            token,
        }),
    ]
}

fn to() -> impl Strategy<Value = To> {
    prop_oneof![
        3 => Just(To::Nothing),
        3 => (pod(), option::of(ttl())).prop_map(|(pod, ttl)| To::Link(pod, ttl)),
        2 => (pod(), incarnation(), above())
            .prop_map(|(pod, incarnation, above)| To::Owned { pod, incarnation, above }),
    ]
}

fn from() -> impl Strategy<Value = From> {
    prop_oneof![
        4 => (0_usize..3).prop_map(|back| From::Read { back }),
        1 => (pod(), any::<bool>())
            .prop_map(|(pod, persistent)| From::Guess { pod, persistent }),
    ]
}

fn foreign() -> impl Strategy<Value = Foreign> {
    let value = prop_oneof![4 => "[0-2]", 1 => Just("pod-3".to_owned())];
    let value = value.prop_map(|text| ["0", "1", "2", "pod-3"][text.parse().unwrap_or(3)]);
    let last = [
        "x",
        "",
        "-5",
        "7",
        "9007199254740993",
        "99999999999999999999",
    ];
    let last = prop::sample::select(last.to_vec()).prop_map(str::to_owned);
    let near = (0_u64..3).prop_map(|less| (LIMIT - less).to_string());
    let record = (pod(), incarnation(), 5_u64..8).prop_map(|(pod, incarnation, token)| {
        // Tokens before, about and after the present.
        let token = token * 300_000_000_000_000;
        format!("{pod}:{incarnation}:{token}")
    });
    let junk = prop::sample::select(&["six", "1", "1:2", "1:2:x", "1:2:3:4", "-1:2:3"][..]);
    prop_oneof![
        6 => (value, option::of(ttl())).prop_map(|(value, ttl)| Foreign::Link(value, ttl)),
        3 => Just(Foreign::Unlink),
        2 => last.prop_map(Foreign::Last),
        1 => near.prop_map(Foreign::Last),
        2 => (1_u64..6).prop_map(Foreign::Ahead),
        3 => record.prop_map(Foreign::Record),
        2 => junk.prop_map(|junk| Foreign::Record(junk.to_owned())),
        1 => Just(Foreign::Lose),
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let life = || option::of(ttl());
    let certified = option::of((pod(), incarnation()));
    let claim = (pod(), incarnation(), certified, above());
    let act = prop_oneof![
        6 => (pod(), ttl()).prop_map(|(pod, ttl)| Act::SetIfAbsent { pod, ttl }),
        6 => (pod(), life()).prop_map(|(pod, ttl)| Act::TrySet { pod, ttl }),
        20 => claim.prop_map(|(pod, incarnation, certified, above)| Act::Claim {
            pod,
            incarnation,
            certified,
            above,
        }),
        12 => (pick(), to()).prop_map(|(found, to)| Act::Swap { found, to }),
        12 => (from(), 0_u64..4, pod(), ttl())
            .prop_map(|(from, dead, to, ttl)| Act::Relink { from, dead, to, ttl }),
        2 => (pod(), life()).prop_map(|(pod, ttl)| Act::Set { pod, ttl }),
        2 => (option::of(pod()), life()).prop_map(|(owner, grace)| Act::Remove { owner, grace }),
        1 => Just(Act::Expire),
        1 => Just(Act::Day),
        4 => foreign().prop_map(Act::Foreign),
    ];
    let link = prop_oneof![3 => 0_usize..2, 2 => 0..LINKS.len()];
    (link, act).prop_map(|(link, act)| Step { link, act })
}
