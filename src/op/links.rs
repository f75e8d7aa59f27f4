//! Operations on the links of users.

use std::sync::Arc;
use std::time::Duration;

use super::{Call, Keys};
use crate::id::{Incarnation, LinkId, Namespace, PodIndex, ServiceId, Uid};
use crate::route::link::{Life, Persist, Removal, StoredLink};

/// Finds or makes the link of a user: what a peer does in its own namespace.
#[derive(Debug, Clone)]
pub struct Compute {
    /// The user.
    pub link: LinkId,
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

/// Writes the link unconditionally; the reply is the previous owner.
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
/// otherwise leaves it. The reply's `made` is whether `pod` has it now.
#[derive(Debug, Clone)]
pub struct TrySet {
    /// The user.
    pub link: LinkId,
    /// The pod to link the user to.
    pub pod: PodIndex,
    /// How long the link lasts.
    pub persist: Persist,
}

/// Moves a user away from a dead pod: writes a temporary link to `to`, only if the stored link is
/// still exactly `from` and no incarnation later than `dead` owns it. `None` if the link has
/// vanished meanwhile; the loser of a race gets the winner's link.
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

/// Removes the link if its owner is `owner` (any, if `None`).
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

of_one_user!(Compute Get SetIfAbsent Set TrySet Relink Remove);

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
