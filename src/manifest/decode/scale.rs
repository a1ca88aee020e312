//! The key `replicas`: the number of instances of a service, or the bounds and the measure by which
//! the Scaler chooses it.

use toml::Spanned;
use toml::de::DeValue;

use super::super::reader::{Collector, Reader};
use crate::model::spec::{SCALE_ON_CPU, ScaleOn, ScaleSpec};

/// Reads a number of instances, or bounds within which the Scaler chooses one.
pub(super) fn replicas(reader: &mut Reader<'_, '_>, collector: &mut Collector) -> (u32, Option<ScaleSpec>) {
    let Some(value) = reader.get("replicas") else {
        return (1, None);
    };
    let DeValue::Table(table) = value.get_ref() else {
        return (reader.integer("replicas", collector).map_or(1, |n| n.value), None);
    };
    let span = value.span();
    let mut inner = Reader::new(table, reader.section("replicas"));
    let min = inner.integer("min", collector).map_or(1, |n| n.value);
    let max = inner.integer("max", collector);
    let on = scale_on(&mut inner, collector);
    inner.finish(collector);
    let Some(max) = max else {
        if !table.contains_key("max") {
            let hint = "write replicas = { min = 1, max = 4, scale_on = \"cpu\" }";
            collector.fault_with(span, "\"replicas\" has no \"max\"", "\"max\" is missing", hint);
        }
        return (1, None);
    };
    if min > max.value {
        let message = format!("\"min\" is {min}, which is more than \"max\"");
        collector.fault_with(max.span, message, "smaller than \"min\"", "write \"min\" or a greater number");
        return (1, None);
    }
    (min, Some(ScaleSpec { min, max: max.value, on }))
}

fn scale_on(reader: &mut Reader<'_, '_>, collector: &mut Collector) -> ScaleOn {
    let usual = ScaleOn::Cpu(SCALE_ON_CPU);
    let Some(value) = reader.get("scale_on") else {
        return usual;
    };
    let span = value.span();
    if matches!(value.get_ref(), DeValue::String(_)) {
        if matches!(value.get_ref(), DeValue::String(word) if word == "memory") {
            let hint = "write scale_on = { memory = \"512MiB\" }";
            collector.fault_with(span, "\"memory\" needs a size", "no size given", hint);
            return usual;
        }
        return reader.choice("scale_on", &[("cpu", usual)], collector).unwrap_or(usual);
    }
    let Some(DeValue::Table(table)) = reader.get("scale_on").map(Spanned::get_ref) else {
        let want = "\"cpu\", or a table such as { cpu = 80 } or { memory = \"512MiB\" }";
        collector.fault(span, format!("\"scale_on\" must be {want}"), "neither a word nor a table");
        return usual;
    };
    let mut inner = Reader::new(table, reader.section("scale_on"));
    // The unit is percent: 100 is one core.
    let cpu = inner.integer("cpu", collector).map(|n| n.value);
    let memory = inner.size("memory", collector).filter(|bytes| *bytes > 0);
    inner.finish(collector);
    match (cpu, memory) {
        (Some(cpu), None) => ScaleOn::Cpu(cpu),
        (None, Some(memory)) => ScaleOn::Memory(memory),
        (Some(_), Some(_)) | (None, None) => {
            let named = ["cpu", "memory"].iter().filter(|key| table.contains_key(**key)).count();
            if named != 1 {
                let message = "\"scale_on\" must name one of \"cpu\" and \"memory\"";
                collector.fault(span, message, "names both or neither");
            }
            usual
        }
    }
}
