//! Ownership records in memory: which process owns which user, by which token.

use std::collections::HashMap;

use super::Moment;
use crate::clock::Tick;
use crate::error::Result;
use crate::id::{Incarnation, LinkId, Namespace, PodIndex, ServiceName, Token, Uid};
use crate::route::link::Owner;
use crate::store::codec::no_token_left;

/// How long tokens are remembered after the last owner, in seconds.
const REMEMBERED: u64 = 86_400;

/// The records of all users.
#[derive(Debug, Default)]
pub(super) struct Owners {
    users: HashMap<(Namespace, Uid), UserOwners>,
}

#[derive(Debug, Default)]
struct UserOwners {
    records: Vec<(ServiceName, Owner)>,
    /// The last token of the user, in any service.
    last: Token,
    /// Until when the token is remembered; `None` as long as anybody owns the user.
    until: Option<Tick>,
}

impl UserOwners {
    fn lives(&self, now: Tick) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Owners {
    /// Who owns the user.
    pub(super) fn get(&self, link: &LinkId) -> Option<Owner> {
        let user = self.users.get(&user(link))?;
        let mut records = user.records.iter();
        let found = records.find(|(service, _)| *service == link.service.service);
        found.map(|(_, owner)| *owner)
    }

    /// Gives the user a new owner, by a token above `above`. The second token is the last before.
    ///
    /// # Errors
    /// `StoreData` if no token is left.
    pub(super) fn put(
        &mut self,
        link: &LinkId,
        pod: PodIndex,
        incarnation: Incarnation,
        above: Token,
        now: Moment,
    ) -> Result<(Token, Token)> {
        let found = self.get(link);
        let user = self.users.entry(user(link)).or_default();
        if !user.lives(now.tick) {
            *user = UserOwners::default();
        }
        let previous = found.map_or(user.last, |owner| owner.token);
        // No record has a token after the last one.
        let least = user.last.max(above).get() + 1;
        let token = Token::new(least.max(now.micros));
        if token.get() >= Token::LIMIT {
            return Err(no_token_left(link));
        }
        let owner = Owner {
            pod,
            incarnation,
            token,
        };
        let service = &link.service.service;
        user.records.retain(|(name, _)| name != service);
        user.records.push((service.clone(), owner));
        (user.last, user.until) = (token, None);
        Ok((token, previous))
    }

    /// Takes the record away.
    pub(super) fn delete(&mut self, link: &LinkId, now: Tick) {
        if let Some(user) = self.users.get_mut(&user(link)) {
            user.records
                .retain(|(name, _)| *name != link.service.service);
            if user.records.is_empty() && user.until.is_none() {
                user.until = Some(now.after(std::time::Duration::from_secs(REMEMBERED)));
            }
        }
    }

    /// Forgets what is remembered no longer.
    pub(super) fn sweep(&mut self, now: Tick) {
        self.users.retain(|_, user| user.lives(now));
    }
}

fn user(link: &LinkId) -> (Namespace, Uid) {
    (link.service.namespace.clone(), link.uid.clone())
}
