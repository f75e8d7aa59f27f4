//! The users that this process owns: a table, and nothing that waits.
//!
//! Every entry carries the *generation* of the lease under which it was confirmed. When the lease
//! lapses the generation rises: then no entry stands until it is confirmed again, and no answer of
//! an earlier generation is taken.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::id::{Incarnation, LinkId, PodIndex, ServiceId, Token, Uid};
use crate::route::link::Owner;

/// The ownership of a user by this process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ownership {
    /// The user.
    pub link: LinkId,
    /// The process, and the token by which it owns the user.
    pub owner: Owner,
    /// The last token before, or [`Token::NONE`] if the store knew of none.
    pub previous: Token,
}

/// What the table holds of one user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OwnedUser {
    pub(super) incarnation: Incarnation,
    pub(super) token: Token,
    pub(super) previous: Token,
}

impl OwnedUser {
    pub(super) fn ownership(self, service: &ServiceId, pod: PodIndex, uid: Uid) -> Ownership {
        let owner = Owner {
            pod,
            incarnation: self.incarnation,
            token: self.token,
        };
        let service = service.clone();
        Ownership {
            link: LinkId { service, uid },
            owner,
            previous: self.previous,
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    users: HashMap<Uid, (OwnedUser, u64)>,
    generation: u64,
    /// How many entries are not of this generation.
    doubted: usize,
}

/// The table. Its lock is held for a look-up, never across an await.
#[derive(Debug, Default)]
pub(super) struct OwnedUsers(RwLock<Table>);

impl OwnedUsers {
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        // Every field is valid even after a panic.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The present generation.
    pub(super) fn generation(&self) -> u64 {
        self.read().generation
    }

    /// What is held of a user, if it is confirmed.
    pub(super) fn get(&self, uid: &str) -> Option<OwnedUser> {
        let table = self.read();
        let (held, generation) = table.users.get(uid)?;
        (*generation == table.generation).then_some(*held)
    }

    /// What is held of a user, confirmed or not.
    pub(super) fn held(&self, uid: &Uid) -> Option<OwnedUser> {
        let table = self.read();
        table.users.get(uid.as_str()).map(|(held, _)| *held)
    }

    /// Whether the user is held by this token, confirmed or not.
    pub(super) fn holds(&self, uid: &Uid, token: Token) -> bool {
        let table = self.read();
        let held = table.users.get(uid.as_str());
        held.is_some_and(|(held, _)| held.token == token)
    }

    /// A token that the next one of this user must exceed: what the process holds is not followed by
    /// less, even if the store has forgotten it. A confirmed token may be given again.
    pub(super) fn above(&self, uid: &Uid) -> Token {
        let table = self.read();
        let Some((held, generation)) = table.users.get(uid.as_str()) else {
            return Token::NONE;
        };
        let again = u64::from(*generation == table.generation);
        Token::new(held.token.get().saturating_sub(again))
    }

    /// How many users are held, confirmed or not.
    pub(super) fn len(&self) -> usize {
        self.read().users.len()
    }

    /// How many are not confirmed at this moment.
    pub(super) fn doubted(&self) -> usize {
        self.read().doubted
    }

    /// The users that are confirmed, or those that are not.
    pub(super) fn all(&self, confirmed: bool) -> Vec<(Uid, OwnedUser)> {
        let table = self.read();
        let wanted = |generation: u64| (generation == table.generation) == confirmed;
        let users = table.users.iter();
        let found = users.filter(|(_, (_, generation))| wanted(*generation));
        found.map(|(uid, (held, _))| (uid.clone(), *held)).collect()
    }

    /// Takes a user up; `false` if the generation is over.
    pub(super) fn insert(&self, uid: Uid, held: OwnedUser, generation: u64) -> bool {
        let mut table = self.write();
        if table.generation != generation {
            return false;
        }
        let before = table.users.insert(uid, (held, generation));
        let doubted = before.is_some_and(|(_, before)| before != generation);
        table.doubted -= usize::from(doubted);
        true
    }

    /// Drops a user that is held by this token.
    pub(super) fn remove(&self, uid: &Uid, token: Token) -> Option<OwnedUser> {
        let mut table = self.write();
        let generation = table.generation;
        let Entry::Occupied(entry) = table.users.entry(uid.clone()) else {
            return None;
        };
        let (held, of) = *entry.get();
        if held.token != token {
            return None;
        }
        entry.remove();
        table.doubted -= usize::from(of != generation);
        Some(held)
    }

    /// The store has confirmed this token, in this generation.
    pub(super) fn confirm(&self, uid: &Uid, token: Token, generation: u64) {
        let mut table = self.write();
        if table.generation != generation {
            return;
        }
        let Some((held, of)) = table.users.get_mut(uid) else {
            return;
        };
        if held.token == token && *of != generation {
            *of = generation;
            table.doubted -= 1;
        }
    }

    /// The user held by one token is held by another, which is confirmed in this generation;
    /// `false` if it is not held by the first one any more, or the generation is over.
    pub(super) fn replace(&self, uid: &Uid, old: Token, new: OwnedUser, generation: u64) -> bool {
        let mut table = self.write();
        if table.generation != generation {
            return false;
        }
        let Some(entry) = table.users.get_mut(uid) else {
            return false;
        };
        if entry.0.token != old {
            return false;
        }
        let doubted = entry.1 != generation;
        *entry = (new, generation);
        table.doubted -= usize::from(doubted);
        true
    }

    /// From now on this user is not confirmed: the store may hold another token of this process.
    pub(super) fn doubt_one(&self, uid: &Uid, token: Token) {
        let mut table = self.write();
        // The generation before: no answer of the present one confirms the user by itself.
        let doubted = table.generation.wrapping_sub(1);
        let generation = table.generation;
        let Some((held, of)) = table.users.get_mut(uid.as_str()) else {
            return;
        };
        if held.token == token && *of == generation {
            *of = doubted;
            table.doubted += 1;
        }
    }

    /// Whether the user is held and not confirmed.
    pub(super) fn is_doubted(&self, uid: &Uid) -> bool {
        let table = self.read();
        let held = table.users.get(uid.as_str());
        held.is_some_and(|(_, generation)| *generation != table.generation)
    }

    /// From now on nothing is confirmed; returns how many users are held.
    pub(super) fn doubt(&self) -> usize {
        let mut table = self.write();
        table.generation += 1;
        table.doubted = table.users.len();
        table.doubted
    }

    /// Drops every user; returns them.
    pub(super) fn clear(&self) -> Vec<(Uid, OwnedUser)> {
        let mut table = self.write();
        table.generation += 1;
        table.doubted = 0;
        let users = std::mem::take(&mut table.users);
        users
            .into_iter()
            .map(|(uid, (held, _))| (uid, held))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(token: u64) -> OwnedUser {
        OwnedUser {
            incarnation: Incarnation::new(1),
            token: Token::new(token),
            previous: Token::NONE,
        }
    }

    fn uid(name: &str) -> Uid {
        Uid::new(name).unwrap()
    }

    #[test]
    fn what_is_doubted_stands_again_only_by_its_token_and_generation() {
        let owned = OwnedUsers::default();
        let first = owned.generation();
        assert!(owned.insert(uid("a"), held(1), first));
        assert!(owned.insert(uid("b"), held(2), first));
        assert_eq!(owned.doubt(), 2);
        assert_eq!(owned.get("a"), None);
        assert!(!owned.insert(uid("c"), held(3), first), "a late answer");
        let second = owned.generation();
        owned.confirm(&uid("a"), Token::new(9), second);
        owned.confirm(&uid("a"), Token::new(1), first);
        assert_eq!((owned.get("a"), owned.doubted()), (None, 2));
        assert_eq!(owned.above(&uid("a")), Token::new(1));
        owned.confirm(&uid("a"), Token::new(1), second);
        owned.confirm(&uid("a"), Token::new(1), second);
        assert_eq!((owned.get("a"), owned.doubted()), (Some(held(1)), 1));
        assert_eq!(owned.above(&uid("a")), Token::new(0));
        assert_eq!(owned.all(false), [(uid("b"), held(2))]);
        assert!(owned.insert(uid("b"), held(4), second));
        assert_eq!((owned.doubted(), owned.len()), (0, 2));
    }

    #[test]
    fn a_user_is_dropped_by_its_token_only() {
        let owned = OwnedUsers::default();
        assert!(owned.insert(uid("a"), held(1), 0));
        assert_eq!(owned.remove(&uid("a"), Token::new(2)), None);
        owned.doubt();
        assert_eq!(owned.remove(&uid("a"), Token::new(1)), Some(held(1)));
        assert_eq!((owned.len(), owned.doubted()), (0, 0));
        assert!(owned.insert(uid("a"), held(5), 1));
        assert_eq!(owned.clear(), [(uid("a"), held(5))]);
        assert!(!owned.insert(uid("a"), held(5), 1));
    }
}
