//! The model: what the store should hold, and what each operation should do to it.
//!
//! It knows nothing of Redis, of Lua or of the memory store. Values are texts, because other
//! programs may write any. A new token cannot be known before: the model says which are allowed.

use std::collections::BTreeMap;

use super::act::{LIMIT, LINKS};

const DAY: u64 = 86_400;

/// A link: its value, and the second at which it ends, if it does.
type Link = (String, Option<u64>);

/// The pod, the incarnation and the token of a record.
pub(super) type Owner = (u32, u64, u64);

/// What is stored about one user of one service.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Snapshot {
    pub(super) link: String,
    pub(super) persistent: bool,
    pub(super) record: String,
}

/// An operation, with everything that it names.
#[derive(Debug, Clone)]
pub(super) enum Op {
    SetIfAbsent {
        pod: u32,
        ttl: u64,
    },
    TrySet {
        pod: u32,
        ttl: Option<u64>,
    },
    Claim {
        pod: u32,
        incarnation: u64,
        certified: Option<(u32, u64)>,
        above: u64,
    },
    Swap {
        found: Snapshot,
        to: Target,
    },
    Relink {
        from: (u32, bool, Option<(u64, u64)>),
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
}

#[derive(Debug, Clone)]
pub(super) enum Target {
    Nothing,
    Link(u32, Option<u64>),
    Owned {
        pod: u32,
        incarnation: u64,
        above: u64,
    },
}

/// What an operation answers.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    Placed {
        made: bool,
        link: Linked,
    },
    Absent,
    Owned {
        token: u64,
        previous: u64,
        again: bool,
    },
    Stale(u64),
    Taken(u32, Option<u64>),
    Swapped {
        done: bool,
        token: Option<(u64, u64)>,
    },
    Previous(Option<u32>),
    Removed(bool, Option<u32>),
    /// What is at the link's key is no pod.
    BadLink,
    /// What is at the records' key is no record.
    BadRecord,
}

/// A link's pod, its life in seconds, if it ends, and its holder's incarnation and token.
pub(super) type Linked = (u32, Option<u64>, Option<(u64, u64)>);

/// The token that the store gave, if any, and its time in microseconds: not before, not after.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given {
    pub(super) token: Option<u64>,
    pub(super) earliest: u64,
    pub(super) latest: u64,
}

#[derive(Debug, Default)]
pub(super) struct User {
    pub(super) links: BTreeMap<&'static str, Link>,
    /// The persistent links as they are listed.
    pub(super) listed: BTreeMap<&'static str, String>,
    pub(super) records: BTreeMap<&'static str, String>,
    pub(super) last: Option<String>,
    /// When the last token is forgotten.
    pub(super) forgotten: Option<u64>,
}

#[derive(Debug, Default)]
pub(super) struct Shadow {
    pub(super) now: u64,
    pub(super) users: BTreeMap<&'static str, User>,
}

pub(super) fn parse(record: &str) -> Option<Owner> {
    let parts: Vec<&str> = record.split(':').collect();
    let [pod, incarnation, token] = parts[..] else {
        return None;
    };
    Some((
        pod.parse().ok()?,
        incarnation.parse().ok()?,
        token.parse().ok()?,
    ))
}

/// The last token; 0 if it is none.
pub(super) fn number(last: &str) -> u64 {
    let digits = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
    let number = last.parse().ok().filter(|_| digits);
    number.filter(|number| *number < LIMIT).unwrap_or(0)
}

/// One user's links and records, and the service in question.
struct At<'a> {
    user: &'a mut User,
    service: &'static str,
    now: u64,
}

impl Shadow {
    fn at(&mut self, link: usize) -> At<'_> {
        let (uid, service) = LINKS[link];
        At {
            now: self.now,
            user: self.users.entry(uid).or_default(),
            service,
        }
    }

    pub(super) fn user(&mut self, link: usize) -> &mut User {
        self.at(link).user
    }

    pub(super) fn play(&mut self, link: usize, op: &Op, given: Given) -> Answer {
        let mut at = self.at(link);
        let answer = match op {
            Op::SetIfAbsent { pod, ttl } => at.set_if_absent(*pod, *ttl),
            Op::TrySet { pod, ttl } => at.try_set(*pod, *ttl),
            Op::Claim {
                pod,
                incarnation,
                certified,
                above,
            } => at.claim((*pod, *incarnation), *certified, *above, given),
            Op::Swap { found, to } => at.swap(found, to, given),
            Op::Relink {
                from,
                dead,
                to,
                ttl,
            } => at.relink(*from, *dead, (*to, *ttl)),
            Op::Set { pod, ttl } => at.set(*pod, *ttl),
            Op::Remove { owner, grace } => at.remove(*owner, *grace),
        };
        answer.unwrap_or_else(|bad| bad)
    }

    /// What a reading finds: the link, the record and what is stored.
    pub(super) fn read(&mut self, link: usize) -> (Result<Reading, Answer>, Snapshot) {
        let at = self.at(link);
        (at.reading(), at.snapshot())
    }

    /// What the clock does to everything.
    pub(super) fn pass(&mut self, seconds: u64) {
        self.now += seconds;
        for user in self.users.values_mut() {
            let now = self.now;
            user.links
                .retain(|_, (_, until)| until.is_none_or(|until| until > now));
            if user.forgotten.is_some_and(|until| until <= now) {
                user.lose();
            }
        }
    }
}

/// A link and a record that can be read.
pub(super) type Reading = (Option<Linked>, Option<Owner>);

impl User {
    /// All records are gone.
    pub(super) fn lose(&mut self) {
        self.records.clear();
        (self.last, self.forgotten) = (None, None);
    }

    /// Whether the hash of records exists.
    pub(super) fn has_records(&self) -> bool {
        self.last.is_some() || !self.records.is_empty()
    }
}

impl At<'_> {
    fn link(&self) -> Option<Link> {
        self.user.links.get(self.service).cloned()
    }

    fn record(&self) -> Result<Option<Owner>, Answer> {
        let record = self.user.records.get(self.service);
        let read = record.map(|record| parse(record).ok_or(Answer::BadRecord));
        read.transpose()
    }

    /// The pod that has the user for good.
    fn fixed(&self) -> Option<String> {
        let link = self.link().filter(|link| link.1.is_none());
        link.map(|link| link.0)
    }

    fn linked(&self, (value, until): Link) -> Result<Linked, Answer> {
        let pod = value.parse().map_err(|_| Answer::BadLink)?;
        let record = self.record()?;
        let holder = record.filter(|owner| owner.0 == pod && until.is_none());
        let left = until.map(|until| until - self.now);
        Ok((pod, left, holder.map(|owner| (owner.1, owner.2))))
    }

    fn placed(&self, made: bool) -> Result<Answer, Answer> {
        match self.link() {
            Some(link) => Ok(Answer::Placed {
                made,
                link: self.linked(link)?,
            }),
            None => Ok(Answer::Absent),
        }
    }

    fn reading(&self) -> Result<Reading, Answer> {
        let link = self.link().map(|link| self.linked(link)).transpose()?;
        Ok((link, self.record()?))
    }

    fn snapshot(&self) -> Snapshot {
        let link = self.link();
        Snapshot {
            persistent: link.as_ref().is_some_and(|link| link.1.is_none()),
            link: link.map_or_else(String::new, |link| link.0),
            record: self
                .user
                .records
                .get(self.service)
                .cloned()
                .unwrap_or_default(),
        }
    }

    fn put(&mut self, pod: u32, ttl: Option<u64>) {
        let (value, until) = (pod.to_string(), ttl.map(|ttl| self.now + ttl));
        match ttl {
            None => self.user.listed.insert(self.service, value.clone()),
            Some(_) => self.user.listed.remove(self.service),
        };
        self.user.links.insert(self.service, (value, until));
    }

    fn delete(&mut self) {
        self.user.links.remove(self.service);
        self.user.listed.remove(self.service);
    }

    /// No process owns the user any more.
    fn disown(&mut self) {
        let Some(record) = self.user.records.remove(self.service) else {
            return;
        };
        let last = number(self.user.last.as_deref().unwrap_or_default());
        if let Some(owner) = parse(&record).filter(|owner| owner.2 > last) {
            self.user.last = Some(owner.2.to_string());
        }
        if !self.user.has_records() {
            self.user.forgotten = None;
        } else if self.user.records.is_empty() {
            self.user.forgotten = Some(self.now + DAY);
        }
    }

    /// A process owns the user. The new token is the least that is greater than every token that
    /// is known, and not before the store's time.
    fn own(
        &mut self,
        (pod, incarnation): (u32, u64),
        above: u64,
        given: Given,
    ) -> Result<(u64, u64), Answer> {
        let last = number(self.user.last.as_deref().unwrap_or_default());
        let stored = self.user.records.get(self.service);
        let record = stored.and_then(|record| parse(record)).map(|owner| owner.2);
        let floor = last.max(record.unwrap_or(0)).max(above) + 1;
        if floor >= LIMIT {
            return Err(Answer::BadRecord);
        }
        let allowed = floor.max(given.earliest)..=floor.max(given.latest);
        let token = given.token.filter(|token| allowed.contains(token));
        let token = token.unwrap_or(*allowed.start());
        let text = format!("{pod}:{incarnation}:{token}");
        self.user.records.insert(self.service, text);
        (self.user.last, self.user.forgotten) = (Some(token.to_string()), None);
        self.put(pod, None);
        Ok((token, record.unwrap_or(last)))
    }

    fn set_if_absent(&mut self, pod: u32, ttl: u64) -> Result<Answer, Answer> {
        let Some((value, until)) = self.link() else {
            let link = (pod.to_string(), Some(self.now + ttl));
            self.user.links.insert(self.service, link);
            let link = (pod, Some(ttl), None);
            return Ok(Answer::Placed { made: true, link });
        };
        let Some(until) = until else {
            return self.placed(false);
        };
        let until = until.max(self.now + ttl);
        self.user
            .links
            .insert(self.service, (value.clone(), Some(until)));
        let pod = value.parse().map_err(|_| Answer::BadLink)?;
        let link = (pod, Some(until - self.now), None);
        Ok(Answer::Placed { made: false, link })
    }

    fn try_set(&mut self, pod: u32, ttl: Option<u64>) -> Result<Answer, Answer> {
        let link = self.link();
        let (record, fixed) = (self.record()?, self.fixed());
        match (record, fixed) {
            (Some(owner), None) => {
                let left = link.map_or(0, |(_, until)| until.unwrap_or(0) - self.now);
                return Ok(Answer::Placed {
                    made: owner.0 == pod,
                    link: (owner.0, Some(left), None),
                });
            }
            (Some(owner), Some(fixed)) if fixed == owner.0.to_string() => {
                return self.placed(owner.0 == pod);
            }
            (_, Some(fixed)) if fixed != pod.to_string() => return self.placed(false),
            _ => {}
        }
        self.put(pod, ttl);
        let link = (pod, ttl, None);
        Ok(Answer::Placed { made: true, link })
    }

    fn claim(
        &mut self,
        me: (u32, u64),
        certified: Option<(u32, u64)>,
        above: u64,
        given: Given,
    ) -> Result<Answer, Answer> {
        let dead = |pod: u32, incarnation: u64| {
            certified.is_some_and(|(dead, until)| dead == pod && incarnation <= until)
        };
        let (record, fixed) = (self.record()?, self.fixed());
        let mine = fixed.as_ref() == Some(&me.0.to_string());
        if let Some((_, incarnation, token)) = record.filter(|owner| owner.0 == me.0) {
            if incarnation > me.1 {
                return Ok(Answer::Stale(incarnation));
            }
            if incarnation == me.1 && mine && token > above {
                return Ok(Answer::Owned {
                    token,
                    previous: 0,
                    again: true,
                });
            }
        }
        if let Some(value) = fixed.filter(|_| !mine) {
            let pod = value.parse().map_err(|_| Answer::BadLink)?;
            let incarnation = record.filter(|owner| owner.0 == pod).map(|owner| owner.1);
            if !dead(pod, incarnation.unwrap_or(0)) {
                return Ok(Answer::Taken(pod, incarnation));
            }
        } else if let Some((pod, incarnation, _)) = record
            && !mine
            && pod != me.0
            && !dead(pod, incarnation)
        {
            return Ok(Answer::Taken(pod, Some(incarnation)));
        }
        let (token, previous) = self.own(me, above, given)?;
        Ok(Answer::Owned {
            token,
            previous,
            again: false,
        })
    }

    fn swap(&mut self, found: &Snapshot, to: &Target, given: Given) -> Result<Answer, Answer> {
        if self.snapshot() != *found {
            return Ok(Answer::Swapped {
                done: false,
                token: None,
            });
        }
        let token = match *to {
            Target::Nothing => {
                self.disown();
                self.delete();
                None
            }
            Target::Link(pod, ttl) => {
                self.disown();
                self.put(pod, ttl);
                None
            }
            Target::Owned {
                pod,
                incarnation,
                above,
            } => Some(self.own((pod, incarnation), above, given)?),
        };
        Ok(Answer::Swapped { done: true, token })
    }

    fn relink(
        &mut self,
        (pod, persistent, holder): (u32, bool, Option<(u64, u64)>),
        dead: u64,
        (to, ttl): (u32, u64),
    ) -> Result<Answer, Answer> {
        let Some((value, until)) = self.link() else {
            return Ok(Answer::Absent);
        };
        let record = self.record()?.filter(|owner| owner.0.to_string() == value);
        let held = record.filter(|_| until.is_none());
        let exact = value == pod.to_string() && until.is_none() == persistent;
        let same = exact && held.map(|owner| (owner.1, owner.2)) == holder;
        if !same || record.is_some_and(|owner| owner.1 > dead) {
            return self.placed(false);
        }
        if record.is_some() {
            self.disown();
        }
        self.put(to, Some(ttl));
        let link = (to, Some(ttl), None);
        Ok(Answer::Placed { made: true, link })
    }

    fn set(&mut self, pod: u32, ttl: Option<u64>) -> Result<Answer, Answer> {
        let previous = self.reading().ok().and_then(|(link, _)| link);
        self.disown();
        self.put(pod, ttl);
        Ok(Answer::Previous(previous.map(|link| link.0)))
    }

    fn remove(&mut self, owner: Option<u32>, grace: Option<u64>) -> Result<Answer, Answer> {
        let (link, record) = self.reading()?;
        let Some((pod, ..)) = link else {
            if record.is_none() {
                self.delete();
            }
            return Ok(Answer::Removed(false, None));
        };
        if owner.is_some_and(|owner| owner != pod) {
            return Ok(Answer::Removed(false, Some(pod)));
        }
        self.disown();
        match grace {
            Some(grace) => self.put(pod, Some(grace)),
            None => self.delete(),
        }
        Ok(Answer::Removed(true, Some(pod)))
    }
}
