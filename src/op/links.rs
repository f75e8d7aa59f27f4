//! Operations on the links of users.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Call, Keys};
use crate::error::{Error, Result};
use crate::id::{Incarnation, LinkId, Namespace, PodIndex, ServiceId, Token, Uid};
use crate::route::link::{Life, Owner, Persist, Removal, StoredLink};

/// Finds or makes the link of a user: what a peer does in its own namespace.
#[derive(Debug, Clone)]
pub struct Compute {
    /// The user.
    pub link: LinkId,
    /// The pods that said "not mine": the peer takes note of each.
    pub refused: Vec<PodIndex>,
    /// Whether the reply is to say how the pod is reached.
    pub describe: bool,
}

impl Compute {
    /// The link alone.
    #[must_use]
    pub const fn of(link: LinkId) -> Self {
        Self {
            link,
            refused: Vec::new(),
            describe: false,
        }
    }
}

/// What [`Compute`] found or made.
#[derive(Debug, Clone)]
pub struct Computed {
    /// The link.
    pub link: StoredLink,
    /// How its pod is reached, if that was asked for. Versions that know no such question leave it
    /// out.
    pub about: Option<Box<PodAbout>>,
}

/// How a pod is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodAbout {
    /// Its address.
    pub address: String,
    /// What it publishes.
    pub metadata: BTreeMap<String, String>,
}

/// The link of a user, or `None`.
#[derive(Debug, Clone)]
pub struct Get {
    /// The user.
    pub link: LinkId,
    /// Where to look. A store has no cache: it looks where the truth is.
    pub from: LinkSource,
}

/// Where a link is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkSource {
    /// In the cache, else in the store.
    CacheOrStore,
    /// In the store.
    Store,
    /// In the cache, else in the store if the link is persistent.
    CacheOrPersistent,
}

impl LinkSource {
    /// Whether a stored link is an answer.
    #[must_use]
    pub fn accepts(self, stored: &StoredLink) -> bool {
        match self {
            Self::CacheOrStore | Self::Store => true,
            Self::CacheOrPersistent => stored.life == Life::Persistent,
        }
    }
}

/// The pods of many users, in the order of `uids`.
#[derive(Debug, Clone)]
pub struct BatchGet {
    /// The service.
    pub service: ServiceId,
    /// The users. Shared, because a part of a large batch needs no copy, nor does its answer.
    pub uids: Arc<[Uid]>,
}

/// The services to which a user has persistent links.
#[derive(Debug, Clone)]
pub struct Services {
    /// The namespace.
    pub namespace: Namespace,
    /// The user.
    pub uid: Uid,
}

/// Writes a temporary link if there is none. An existing link stays; if it is temporary, its life
/// is raised to `ttl`, never shortened.
#[derive(Debug, Clone)]
pub struct SetIfAbsent {
    /// The user.
    pub link: LinkId,
    /// The pod to link the user to.
    pub pod: PodIndex,
    /// How long the link lasts. A peer has a TTL of its own, and takes that.
    pub ttl: Duration,
}

/// Everything that the store holds about one user: what a compare-and-set compares.
#[derive(Debug, Clone)]
pub struct Read {
    /// The user.
    pub link: LinkId,
}

/// What [`Read`] found.
#[derive(Debug, Clone, Default)]
pub struct StoredUser {
    /// The link. `None` if there is none, and if it cannot be read.
    pub link: Option<StoredLink>,
    /// The ownership record. Its pod need not be the link's: another program may have written that.
    pub record: Option<Owner>,
    /// The link and the record as they are stored; empty if absent.
    pub(crate) stored: Stored,
    /// Why the link or the record cannot be read.
    pub(crate) unreadable: Option<Error>,
}

/// A link and its record as they are stored. Other programs may write any bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) link: Vec<u8>,
    pub(crate) persistent: bool,
    pub(crate) record: Vec<u8>,
}

impl StoredUser {
    /// What a process that owns the user finds.
    #[must_use]
    pub fn of_owner(owner: Owner) -> Self {
        let link = StoredLink {
            pod: owner.pod,
            life: Life::Persistent,
            holder: Some(owner.holder()),
        };
        Self::new(Some(link), Some(owner))
    }

    /// A link and a record that could be read.
    pub(crate) fn new(link: Option<StoredLink>, record: Option<Owner>) -> Self {
        let stored = Stored {
            link: link.map_or_else(Vec::new, |link| link.pod.to_string().into()),
            persistent: link.is_some_and(|link| link.life == Life::Persistent),
            record: record.map_or_else(Vec::new, |record| record.to_string().into()),
        };
        Self {
            link,
            record,
            stored,
            unreadable: None,
        }
    }

    /// The same, unless something in it cannot be read.
    ///
    /// # Errors
    /// `StoreData`, with the key.
    pub fn readable(self) -> Result<Self> {
        match self.unreadable {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }

    /// Whether this process owns the user by this token: link and record both name it.
    #[must_use]
    pub fn is_owned_by(&self, owner: Owner) -> bool {
        self.stored == Self::of_owner(owner).stored
    }
}

/// Compare-and-set: changes the link only if it and its record are still exactly what was found.
#[derive(Debug, Clone)]
pub struct Swap {
    /// The user.
    pub link: LinkId,
    /// What the store must hold.
    pub found: Box<StoredUser>,
    /// What it holds afterwards.
    pub to: Rewrite,
}

/// What becomes of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewrite {
    /// It is deleted. No process owns the user.
    Nothing,
    /// It names this pod, without an owner.
    Link(PodIndex, Persist),
    /// It is persistent, and this process owns the user by a new token above `above`.
    Owned {
        /// The pod.
        pod: PodIndex,
        /// The process.
        incarnation: Incarnation,
        /// A token that the new one exceeds.
        above: Token,
    },
}

/// What [`Swap`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swapped {
    /// Whether the link was changed; if not, something else was found.
    pub done: bool,
    /// The new token, if the user is owned now, and the last one before it.
    pub token: Option<(Token, Token)>,
}

/// Makes a user a process's own, if no other process owns it. It is idempotent: a process that owns the
/// user gets the same token again, if that exceeds `above`.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The user.
    pub link: LinkId,
    /// The pod that claims.
    pub pod: PodIndex,
    /// Its process.
    pub incarnation: Incarnation,
    /// A death certificate: every process of this pod up to this incarnation is dead.
    pub certified: Option<(PodIndex, Incarnation)>,
    /// A token that the process's token exceeds.
    pub above: Token,
}

/// The reply to [`Claim`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// The process owns the user.
    Owned {
        /// By this token.
        token: Token,
        /// The last token before, or [`Token::NONE`] if the store knows of none.
        previous: Token,
        /// The process owned it already, by the same token.
        again: bool,
    },
    /// A later process of the same pod owns the user: this one is over.
    Stale(Incarnation),
    /// Another pod holds the user. Only its death certificate, for this incarnation, sets it free.
    Taken {
        /// The pod.
        pod: PodIndex,
        /// Its process; `None` if the link has no record.
        incarnation: Option<Incarnation>,
    },
}

/// Writes the link whichever pod has it; the reply is the previous owner. A store has no such step: it is
/// a [`Read`] and a [`Swap`].
#[derive(Debug, Clone)]
pub struct Set {
    /// The user.
    pub link: LinkId,
    /// The pod to link the user to.
    pub pod: PodIndex,
    /// How long the link lasts.
    pub persist: Persist,
}

/// Writes the link if there is none, if it already names `pod`, or if it is temporary and unowned;
/// otherwise leaves it, as it leaves a user whom a process owns. The reply's `made` is whether
/// `pod` has it now.
#[derive(Debug, Clone)]
pub struct TrySet {
    /// The user.
    pub link: LinkId,
    /// The pod to link the user to.
    pub pod: PodIndex,
    /// How long the link lasts.
    pub persist: Persist,
}

/// Moves a user away from a dead pod: writes a temporary link to `to`, only if the stored link and
/// its owner are still exactly `from`, and the owner is no incarnation later than `dead`. `None` if
/// the link has vanished meanwhile; the loser of a race gets the winner's link.
#[derive(Debug, Clone)]
pub struct Relink {
    /// The user.
    pub link: LinkId,
    /// The link that was judged.
    pub from: StoredLink,
    /// Every incarnation of its pod up to this one is dead or shut down.
    pub dead: Incarnation,
    /// The pod to link the user to.
    pub to: PodIndex,
    /// How long the new link lasts.
    pub ttl: Duration,
}

/// Removes the link if its owner is `owner` (any, if `None`). A store has no such step: it is a
/// [`Read`] and a [`Swap`].
#[derive(Debug, Clone)]
pub struct Remove {
    /// The user.
    pub link: LinkId,
    /// The owner that the link must have.
    pub owner: Option<PodIndex>,
    /// At once, or with a grace period.
    pub removal: Removal,
}

/// What [`Remove`] found and did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removed {
    /// The owner that was found. A peer does not return it.
    pub previous: Option<PodIndex>,
    /// Whether the link was removed, or got its grace period.
    pub done: bool,
}

/// The reply to an operation that reads many links. A value that no pod wrote harms its own link:
/// it is left out, and the others are there.
#[derive(Debug, Clone, Default)]
pub struct LinksRead<T> {
    /// The links that could be read.
    pub links: T,
    /// The links that could not. A peer does not return them.
    pub unreadable: Box<[UnreadableLink]>,
}

impl<T> From<T> for LinksRead<T> {
    fn from(links: T) -> Self {
        Self {
            links,
            unreadable: Box::default(),
        }
    }
}

/// A link with a value that no pod wrote.
#[derive(Debug, Clone)]
pub struct UnreadableLink {
    /// The user.
    pub uid: Uid,
    /// The error that a reading of this link alone gets: it names the key.
    pub error: Error,
}

macro_rules! of_one_user {
    ($($operation:ident)+) => {
        $(impl $operation {
            pub(super) fn touches(&self) -> Keys<'_> {
                Keys::User(&self.link.service.namespace, &self.link.uid)
            }
        })+

        impl Call {
            /// The link that the operation is about, if it is about one.
            #[must_use]
            pub fn link(&self) -> Option<&LinkId> {
                match self {
                    $(Self::$operation(operation) => Some(&operation.link),)+
                    _ => None,
                }
            }
        }
    };
}

of_one_user!(Compute Get Read SetIfAbsent Set TrySet Claim Swap Relink Remove);

impl Services {
    pub(super) fn touches(&self) -> Keys<'_> {
        Keys::User(&self.namespace, &self.uid)
    }
}

impl BatchGet {
    pub(super) fn touches(&self) -> Keys<'_> {
        Keys::Users(&self.service, &self.uids)
    }
}
