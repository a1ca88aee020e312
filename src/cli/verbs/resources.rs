//! `resources`: what the machine, or services, used over the last day.

use crate::cli::connect::{print_json, query, say, talk};
use crate::cli::format::{Table, Tint};
use crate::cli::{ResourcesArgs, code, format};
use crate::control::protocol::ResourceHistories;
use crate::model::history::{HistoryPoint, Measure, ResourceHistory};
use crate::present::units;
use crate::present::units::size;
use crate::sys::terminal;

/// From this width on, a terminal has room for all columns.
const WIDE: usize = 110;
/// The width of a curve, in columns.
const CURVE: usize = 32;

pub(in crate::cli) fn resources(args: ResourcesArgs) -> u8 {
    let ResourcesArgs { services, since, common } = args;
    let path = format!("/v1/resources?since_s={}{}", since.as_secs_f64(), query(&services));
    talk(&common, async |mut client| {
        let found: ResourceHistories = client.get(&path).await?;
        if common.json {
            print_json(&found);
        } else if found.histories.iter().all(|history| history.points.is_empty()) {
            say("nothing has been measured yet");
        } else {
            show(&found.histories);
        }
        Ok(code::DONE)
    })
}

fn show(histories: &[ResourceHistory]) {
    // A narrow terminal has no room for the time of the peak.
    let width = terminal::width();
    let has_time = width.is_none_or(|width| width >= WIDE);
    let mut columns = vec!["OF", "MEASURE", ">LAST", ">AVERAGE", ">PEAK", "AT", ">PER HOUR", "CURVE"];
    columns.retain(|column| has_time || *column != "AT");
    let mut table = Table::new(&columns);
    for history in histories {
        let of = history.of.as_deref().unwrap_or("machine");
        for (measure, trend) in &history.trends {
            let last = history.points.iter().rev().find_map(|point| point.levels.get(measure));
            let told = |value: f64| told(*measure, value);
            let slope = trend.slope_per_hour.map_or("-".to_owned(), |slope| {
                format!("{}{}", if slope < 0.0 { "-" } else { "+" }, told(slope.abs()))
            });
            let mut row = vec![
                (of.to_owned(), Tint::None),
                (word(*measure).to_owned(), Tint::None),
                (last.map_or("-".to_owned(), |level| told(level.mean)), Tint::None),
                (told(trend.average), Tint::None),
                (told(trend.peak), Tint::None),
                (humantime::format_rfc3339_seconds(trend.peak_at).to_string(), Tint::Faint),
                (slope, Tint::None),
                (curve(&history.points, *measure), Tint::None),
            ];
            if !has_time {
                row.remove(5);
            }
            table.row(row);
        }
    }
    say(&table.render(width, format::colour_on_stdout()));
}

fn told(measure: Measure, value: f64) -> String {
    let bytes = |value: f64| size(value.max(0.0) as u64);
    match measure {
        Measure::CpuPercent
        | Measure::MemoryPercent
        | Measure::SwapPercent
        | Measure::DiskPercent
        | Measure::CpuPressurePercent
        | Measure::MemoryPressurePercent
        | Measure::IoPressurePercent => units::percent(value),
        Measure::LoadPerCore => format!("{value:.2}"),
        Measure::Processes => format!("{value:.1}"),
        Measure::MemoryBytes => bytes(value),
        Measure::DiskReadBytesPerS
        | Measure::DiskWrittenBytesPerS
        | Measure::ReceivedBytesPerS
        | Measure::SentBytesPerS => format!("{}/s", bytes(value)),
    }
}

fn word(measure: Measure) -> &'static str {
    match measure {
        Measure::CpuPercent => "CPU",
        Measure::MemoryPercent | Measure::MemoryBytes => "memory",
        Measure::SwapPercent => "swap",
        Measure::LoadPerCore => "load per core",
        Measure::DiskPercent => "fullest disk",
        Measure::DiskReadBytesPerS => "disk read",
        Measure::DiskWrittenBytesPerS => "disk written",
        Measure::ReceivedBytesPerS => "received",
        Measure::SentBytesPerS => "sent",
        Measure::CpuPressurePercent => "stalled for CPU",
        Measure::MemoryPressurePercent => "stalled for memory",
        Measure::IoPressurePercent => "stalled for I/O",
        Measure::Processes => "processes",
    }
}

/// The peaks of a series as a curve from zero to the highest, at most `CURVE` columns wide.
fn curve(points: &[HistoryPoint], measure: Measure) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let peak = |point: &HistoryPoint| point.levels.get(&measure).map(|level| level.peak);
    let highest = points.iter().filter_map(peak).fold(0.0, f64::max);
    let columns = points.len().min(CURVE);
    let column = |number: usize| {
        let part = &points[number * points.len() / columns..(number + 1) * points.len() / columns];
        let Some(peak) = part.iter().filter_map(peak).reduce(f64::max) else {
            return ' ';
        };
        let share = if highest > 0.0 { (peak / highest).clamp(0.0, 1.0) } else { 0.0 };
        LEVELS[((share * 7.0).round() as usize).min(7)]
    };
    (0..columns).map(column).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::SystemTime;

    use super::*;
    use crate::model::history::Level;

    #[test]
    fn a_curve_goes_from_nothing_to_the_highest_peak() {
        let point = |peak: f64| {
            let levels = BTreeMap::from([(Measure::CpuPercent, Level { mean: 0.0, peak })]);
            HistoryPoint { at: SystemTime::UNIX_EPOCH, samples: 1, levels }
        };
        let points: Vec<HistoryPoint> = [0.0, 50.0, 100.0, 25.0].map(point).to_vec();
        assert_eq!(curve(&points, Measure::CpuPercent), "▁▅█▃");
        assert_eq!(curve(&points, Measure::MemoryBytes), "    ");
        assert_eq!(curve(&[], Measure::CpuPercent), "");
        let many: Vec<HistoryPoint> = (0..1_000).map(|n| point(f64::from(n))).collect();
        assert_eq!(curve(&many, Measure::CpuPercent).chars().count(), CURVE);
    }
}
