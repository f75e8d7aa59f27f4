//! The store's keys.
//!
//! Names that `id.rs` has validated go into a key unescaped: no two different triples share one.
//! The part in braces is the hash tag, so all keys of one script are in one cluster slot.

use crate::id::{LinkId, Namespace, ServiceId, Tag, Uid};

/// `sf:{ns:lk:uid}svc`, a string: the link.
pub(super) fn link(service: &ServiceId, uid: &Uid) -> String {
    [
        "sf:{",
        service.namespace.as_str(),
        ":lk:",
        uid.as_str(),
        "}",
        service.service.as_str(),
    ]
    .concat()
}

/// `sf:{ns:lk:uid}`, a hash: the user's persistent links.
pub(super) fn user(namespace: &Namespace, uid: &Uid) -> String {
    ["sf:{", namespace.as_str(), ":lk:", uid.as_str(), "}"].concat()
}

/// `sf:{ns:lk:uid}#own`, a hash: the owners of the user's links, with fencing tokens.
pub(super) fn owner(link: &LinkId) -> String {
    let namespace = link.service.namespace.as_str();
    ["sf:{", namespace, ":lk:", link.uid.as_str(), "}#own"].concat()
}

/// `sf:{ns:state:svc}`, a hash of pod states; the event channel has the same name.
pub(super) fn state(service: &ServiceId) -> String {
    [
        "sf:{",
        service.namespace.as_str(),
        ":state:",
        service.service.as_str(),
        "}",
    ]
    .concat()
}

/// `sf:{ns:state:svc}#lease`, a hash of incarnations and lease deadlines.
pub(super) fn lease(service: &ServiceId) -> String {
    [
        "sf:{",
        service.namespace.as_str(),
        ":state:",
        service.service.as_str(),
        "}#lease",
    ]
    .concat()
}

/// `sf:{ns:workload:svc}`, a string: the state of the whole service, as JSON.
pub(super) fn workload(service: &ServiceId) -> String {
    let (namespace, name) = (service.namespace.as_str(), service.service.as_str());
    ["sf:{", namespace, ":workload:", name, "}"].concat()
}

/// `sf:{ns:tag:tag}`, a string: the service that the tag resolves to.
pub(super) fn tag(namespace: &Namespace, tag: &Tag) -> String {
    ["sf:{", namespace.as_str(), ":tag:", tag.as_str(), "}"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ServiceName;

    fn service() -> ServiceId {
        ServiceId {
            namespace: Namespace::new("ns").unwrap(),
            service: ServiceName::new("svc").unwrap(),
        }
    }

    #[test]
    fn keys_are_those_of_the_design() {
        let uid = Uid::new("u1").unwrap();
        let blue = Tag::new("blue").unwrap();
        let of_user = LinkId {
            service: service(),
            uid: uid.clone(),
        };
        assert_eq!(link(&service(), &uid), "sf:{ns:lk:u1}svc");
        assert_eq!(user(&service().namespace, &uid), "sf:{ns:lk:u1}");
        assert_eq!(owner(&of_user), "sf:{ns:lk:u1}#own");
        assert_eq!(state(&service()), "sf:{ns:state:svc}");
        assert_eq!(lease(&service()), "sf:{ns:state:svc}#lease");
        assert_eq!(workload(&service()), "sf:{ns:workload:svc}");
        assert_eq!(tag(&service().namespace, &blue), "sf:{ns:tag:blue}");
    }
}
