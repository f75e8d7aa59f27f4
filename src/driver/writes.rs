//! Writes to a link in two steps: what is there is read, then changed by compare-and-set. So a
//! write that comes late cannot undo what happened meanwhile.

use crate::clock::Tick;
use crate::error::{Error, Result, WriteOutcome};
use crate::id::{LinkId, PodIndex};
use crate::op::{Operation, Read, Remove, Removed, Rewrite, Set, StoredUser, Swap, expected};
use crate::route::link::{Persist, Removal};
use crate::store::Store;

/// Writes a link whichever pod has it; returns the previous owner. A link or record that cannot be read
/// is replaced.
///
/// # Errors
/// What the store failed with; `Timeout`.
pub async fn set(
    store: &(impl Store + ?Sized),
    set: &Set,
    deadline: Tick,
) -> Result<Option<PodIndex>> {
    let to = Rewrite::Link(set.pod, set.persist);
    loop {
        let found = read(store, &set.link, deadline).await?;
        let previous = found.link.map(|link| link.pod);
        if swap(store, &set.link, found, to, deadline).await? {
            return Ok(previous);
        }
    }
}

/// Removes a link if its owner is the one that is named.
///
/// # Errors
/// `StoreData` for a link that cannot be read; what the store failed with; `Timeout`.
pub async fn remove(
    store: &(impl Store + ?Sized),
    remove: &Remove,
    deadline: Tick,
) -> Result<Removed> {
    loop {
        let found = read(store, &remove.link, deadline).await?.readable();
        let found = found.map_err(not_sent)?;
        let previous = found.link.map(|link| link.pod);
        if previous.is_none() && found.record.is_none() {
            // The user's hash may still list a link that another program deleted.
            swap(store, &remove.link, found, Rewrite::Nothing, deadline).await?;
            return Ok(Removed {
                previous,
                done: false,
            });
        }
        let Some(pod) = previous.filter(|pod| remove.owner.is_none_or(|owner| owner == *pod))
        else {
            return Ok(Removed {
                previous,
                done: false,
            });
        };
        let to = after_removal(pod, remove.removal);
        if swap(store, &remove.link, found, to, deadline).await? {
            return Ok(Removed {
                previous,
                done: true,
            });
        }
    }
}

/// What becomes of a link to `pod` that is removed.
pub(super) fn after_removal(pod: PodIndex, removal: Removal) -> Rewrite {
    match removal {
        Removal::Now => Rewrite::Nothing,
        Removal::Grace(grace) => Rewrite::Link(pod, Persist::For(grace)),
    }
}

/// Everything that the store holds about a user, for a write.
pub(super) async fn read(
    store: &(impl Store + ?Sized),
    link: &LinkId,
    deadline: Tick,
) -> Result<StoredUser> {
    let link = link.clone();
    let found = ask(store, Read { link }, deadline).await;
    found.map(|found| *found).map_err(not_sent)
}

/// Compare-and-set; `false` if something else was there.
async fn swap(
    store: &(impl Store + ?Sized),
    link: &LinkId,
    found: StoredUser,
    to: Rewrite,
    deadline: Tick,
) -> Result<bool> {
    let swap = Swap {
        link: link.clone(),
        found: Box::new(found),
        to,
    };
    Ok(ask(store, swap, deadline).await?.done)
}

async fn ask<O: Operation>(
    store: &(impl Store + ?Sized),
    operation: O,
    deadline: Tick,
) -> Result<O::Reply> {
    expected::<O>(store.call(&operation.into(), deadline).await?)
}

/// The failure of the reading: nothing was written.
fn not_sent(error: Error) -> Error {
    error.with_outcome(WriteOutcome::NotSent)
}
