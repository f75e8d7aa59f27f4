//! The addresses of pods: what a gateway connects to.

use std::sync::Arc;

use super::state::PodState;
use crate::error::{Error, Result};
use crate::id::{PodIndex, ServiceId, invalid, shown};

/// The longest template, in bytes.
const TEXT_MAX: usize = 512;

/// The metadata field in which a pod publishes its address.
const ADDRESS: &str = "address";
/// The metadata field with the pod's name in Kubernetes.
const POD_NAME: &str = "podName";

/// The address of a pod that publishes none: a text with fields in braces. `{{` and `}}` are braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressTemplate(Arc<Parsed>);

#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    text: String,
    parts: Vec<Part>,
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(AddressField),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AddressField {
    PodName,
    ServiceName,
    Namespace,
    PodIndex,
}

impl AddressField {
    const ALL: [(&'static str, Self); 4] = [
        ("pod_name", Self::PodName),
        ("service_name", Self::ServiceName),
        ("namespace", Self::Namespace),
        ("pod_index", Self::PodIndex),
    ];

    fn parse(name: &str) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, field)| field)
    }
}

impl AddressTemplate {
    /// As a headless service names its pods.
    pub const DEFAULT: &'static str = "{pod_name}.{service_name}.{namespace}.svc";

    /// Reads the template that is the setting `what`.
    ///
    /// # Errors
    /// `InvalidParameter` for an unknown field, a brace without its other half, and a text that is
    /// empty or too long.
    pub fn parse(what: &'static str, text: &str) -> Result<Self> {
        let parts = parts(text).ok_or_else(|| refused(what, text))?;
        let text = text.to_owned();
        Ok(Self(Arc::new(Parsed { text, parts })))
    }

    /// The template.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// The address of a pod: what it publishes, or else the template with the fields filled in.
    #[must_use]
    pub fn address(&self, service: &ServiceId, pod: PodIndex, state: Option<&PodState>) -> String {
        let published = |name| state.and_then(|state| state.metadata.get(name));
        if let Some(address) = published(ADDRESS) {
            return address.clone();
        }
        let mut address = String::with_capacity(64);
        for part in &self.0.parts {
            match part {
                Part::Text(text) => address.push_str(text),
                Part::Field(AddressField::PodName) => match published(POD_NAME) {
                    Some(name) => address.push_str(name),
                    None => address.push_str(&format!("{}-{pod}", service.service.as_str())),
                },
                Part::Field(AddressField::ServiceName) => {
                    address.push_str(service.service.as_str())
                }
                Part::Field(AddressField::Namespace) => {
                    address.push_str(service.namespace.as_str())
                }
                Part::Field(AddressField::PodIndex) => address.push_str(&pod.to_string()),
            }
        }
        address
    }
}

/// The address of a pod by the default template, if nothing is known of the pod.
#[must_use]
pub fn default_address(service: &ServiceId, pod: PodIndex) -> String {
    let (namespace, service) = (service.namespace.as_str(), service.service.as_str());
    format!("{service}-{pod}.{service}.{namespace}.svc")
}

fn parts(text: &str) -> Option<Vec<Part>> {
    if text.is_empty() || text.len() > TEXT_MAX {
        return None;
    }
    let (mut parts, mut plain) = (Vec::new(), String::new());
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            '{' | '}' if rest.peek() == Some(&next) => plain.extend(rest.next()),
            '}' => return None,
            '{' => {
                let mut name = String::new();
                loop {
                    match rest.next()? {
                        '}' => break,
                        letter => name.push(letter),
                    }
                }
                let field = AddressField::parse(&name)?;
                if !plain.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                }
                parts.push(Part::Field(field));
            }
            other => plain.push(other),
        }
    }
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Some(parts)
}

fn refused(what: &'static str, text: &str) -> Error {
    let fields = AddressField::ALL
        .map(|(name, _)| format!("{{{name}}}"))
        .join(", ");
    let allowed = format!("1 to {TEXT_MAX} bytes of text, with no other fields than {fields}");
    invalid(what, &shown(text), &allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Incarnation, Namespace, ServiceName};
    use crate::route::state::{Readiness, RoutingState};

    fn service() -> ServiceId {
        ServiceId {
            namespace: Namespace::new("prod").unwrap(),
            service: ServiceName::new("game").unwrap(),
        }
    }

    fn state(metadata: &[(&str, &str)]) -> PodState {
        let metadata = metadata.iter();
        PodState {
            pod_id: PodIndex::new(0).unwrap(),
            state: Readiness::Ready,
            load_state: 0,
            routing_state: RoutingState::Ready,
            update_time: 0,
            incarnation: Incarnation::new(1),
            metadata: metadata
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    fn rendered(template: &str, state: Option<&PodState>) -> String {
        let template = AddressTemplate::parse("address_template", template).unwrap();
        template.address(&service(), PodIndex::new(0).unwrap(), state)
    }

    #[test]
    fn fields_are_filled_in() {
        let default = AddressTemplate::DEFAULT;
        assert_eq!(rendered(default, None), "game-0.game.prod.svc");
        let unknown = default_address(&service(), PodIndex::new(0).unwrap());
        assert_eq!(unknown, rendered(default, None));
        let named = state(&[("podName", "game-blue-0")]);
        assert_eq!(rendered(default, Some(&named)), "game-blue-0.game.prod.svc");
        let whole = "{{{namespace}}}:70{pod_index}";
        assert_eq!(rendered(whole, None), "{prod}:700");
        assert_eq!(rendered("localhost", None), "localhost");
    }

    #[test]
    fn a_published_address_wins() {
        let state = state(&[("address", "10.0.0.7:9000"), ("podName", "x")]);
        let address = rendered(AddressTemplate::DEFAULT, Some(&state));
        assert_eq!(address, "10.0.0.7:9000");
    }

    #[test]
    fn a_wrong_template_is_refused_with_the_fields() {
        let long = "x".repeat(TEXT_MAX + 1);
        for wrong in [
            "",
            "{",
            "}",
            "a{pod_name",
            "{pod}",
            "{}",
            "{pod_name}}",
            &long,
        ] {
            let error = AddressTemplate::parse("address_template", wrong).unwrap_err();
            assert!(error.to_string().contains("{pod_index}"), "{error}");
        }
    }
}
