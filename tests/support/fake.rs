//! Services for trees on a fake host: each runs a program with the service's own name.

use regrow::model::{Condition, Dependency, Name, ServiceSpec};

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn service(text: &str, needs: &[&str]) -> ServiceSpec {
    let mut spec = ServiceSpec::new(name(text), [text]);
    let needs =
        needs.iter().map(|on| Dependency { on: name(on), condition: Condition::Ready, required: true });
    spec.depends_on = needs.collect();
    spec
}
