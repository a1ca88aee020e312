//! The measurements of the last day, in rings of bounded length: a point of the machine covers one
//! minute, and a point of an instance covers six.
//!
//! Pure: samples and times are arguments. Times are those of the supervisor's clock, so setting the
//! wall clock moves nothing; points of an earlier supervisor lie before this clock's zero.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use crate::model::history::{HistoryPoint, Level, Measure, ResourceHistory, Trend};
use crate::model::sample::{DiskSample, MachineSample, NetworkSample, Sample, Usage, percent};

/// How long points are kept.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);
/// The time that one point of the machine covers.
pub const OF_MACHINE: Duration = Duration::from_secs(60);
/// The time that one point of an instance covers.
pub const OF_INSTANCE: Duration = Duration::from_secs(360);

/// Milliseconds since the supervisor's start; negative: before it.
type Millis = i64;

fn millis(time: Duration) -> Millis {
    Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX)
}

/// A wall clock and a supervisor's clock, read at the same moment.
#[derive(Debug, Clone, Copy)]
pub struct ClockReading {
    /// The time since the supervisor's start.
    pub clock: Duration,
    /// The time of the wall clock.
    pub wall: SystemTime,
}

impl ClockReading {
    fn wall_of(self, at: Millis) -> SystemTime {
        let ago = millis(self.clock) - at;
        let by = Duration::from_millis(ago.unsigned_abs());
        let moved = if ago < 0 { self.wall.checked_add(by) } else { self.wall.checked_sub(by) };
        moved.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn clock_of(self, at: SystemTime) -> Millis {
        match self.wall.duration_since(at) {
            Ok(ago) => millis(self.clock) - millis(ago),
            Err(ahead) => millis(self.clock) + millis(ahead.duration()),
        }
    }
}

/// A point whose time is over, to be written down, with the printed name of its instance; `None`
/// stands for the machine.
pub type ClosedPoint = (Option<String>, HistoryPoint);

/// The measures of the machine, in the order of a point's values.
const MACHINE: [Measure; 12] = [
    Measure::CpuPercent,
    Measure::MemoryPercent,
    Measure::SwapPercent,
    Measure::LoadPerCore,
    Measure::DiskPercent,
    Measure::DiskReadBytesPerS,
    Measure::DiskWrittenBytesPerS,
    Measure::ReceivedBytesPerS,
    Measure::SentBytesPerS,
    Measure::CpuPressurePercent,
    Measure::MemoryPressurePercent,
    Measure::IoPressurePercent,
];

/// The measures of an instance, in the order of a point's values.
const INSTANCE: [Measure; 3] = [Measure::CpuPercent, Measure::MemoryBytes, Measure::Processes];

/// A point as it is kept, small since each instance has 240 of them. A value that could not be
/// measured is NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point<const N: usize> {
    at: Millis,
    means: [f32; N],
    peaks: [f32; N],
    /// How often each value was measured.
    counts: [u16; N],
}

impl<const N: usize> Point<N> {
    fn told(&self, measures: &[Measure; N], now: ClockReading) -> HistoryPoint {
        let level = |mean: f32, peak: f32| Level { mean: f64::from(mean), peak: f64::from(peak) };
        let all = measures.iter().zip(self.means.iter().zip(&self.peaks));
        let known = all.filter(|(_, (mean, _))| !mean.is_nan());
        let levels = known.map(|(measure, (mean, peak))| (*measure, level(*mean, *peak))).collect();
        HistoryPoint { at: now.wall_of(self.at), samples: self.samples(), levels }
    }

    fn samples(&self) -> u32 {
        self.counts.iter().copied().max().unwrap_or(0).into()
    }

    fn add(&mut self, readings: &[Option<f64>; N]) {
        for (number, reading) in readings.iter().enumerate() {
            let Some(value) = reading.map(|value| value as f32) else {
                continue;
            };
            let (mean, count) = (&mut self.means[number], &mut self.counts[number]);
            *count = count.saturating_add(1);
            *mean = if mean.is_nan() { value } else { *mean + (value - *mean) / f32::from(*count) };
            self.peaks[number] = self.peaks[number].max(value);
        }
    }
}

#[derive(Debug, Clone)]
struct Ring<const N: usize> {
    step: Millis,
    measures: &'static [Measure; N],
    points: VecDeque<Point<N>>,
}

impl<const N: usize> Ring<N> {
    fn new(step: Duration, measures: &'static [Measure; N]) -> Ring<N> {
        Ring { step: millis(step), measures, points: VecDeque::new() }
    }

    /// Adds a sample's readings; returns the point before, if this one begins a new point.
    fn push(&mut self, at: Millis, readings: &[Option<f64>; N], now: ClockReading) -> Option<HistoryPoint> {
        let begin = at - at.rem_euclid(self.step);
        let mut over = None;
        if self.points.back().is_none_or(|last| last.at < begin) {
            over = self.points.back().map(|last| last.told(self.measures, now));
            let fresh = Point { at: begin, means: [f32::NAN; N], peaks: [f32::NAN; N], counts: [0; N] };
            self.points.push_back(fresh);
        }
        if let Some(last) = self.points.back_mut() {
            last.add(readings);
        }
        self.forget(at);
        over
    }

    /// Takes a point that was written down, if it is newer than all points of the ring.
    fn restore(&mut self, at: Millis, point: &HistoryPoint) {
        if self.points.back().is_some_and(|last| last.at >= at) {
            return;
        }
        let part = |of: fn(&Level) -> f64| {
            self.measures.map(|measure| point.levels.get(&measure).map_or(f32::NAN, |level| of(level) as f32))
        };
        let (means, peaks) = (part(|level| level.mean), part(|level| level.peak));
        let samples = u16::try_from(point.samples).unwrap_or(u16::MAX);
        let counts = means.map(|mean: f32| if mean.is_nan() { 0 } else { samples });
        self.points.push_back(Point { at, means, peaks, counts });
    }

    fn forget(&mut self, now: Millis) {
        while self.points.front().is_some_and(|first| first.at + self.step + millis(KEPT) <= now) {
            self.points.pop_front();
        }
    }

    fn since(&self, of: Option<&str>, from: Millis, now: ClockReading) -> ResourceHistory {
        // A point that was under way at `from` counts.
        let points = self.points.iter().filter(|point| point.at + self.step > from);
        ResourceHistory {
            of: of.map(str::to_owned),
            step_s: Duration::from_millis(self.step.unsigned_abs()).as_secs_f64(),
            trends: self.trends(from, now),
            points: points.map(|point| point.told(self.measures, now)).collect(),
        }
    }

    fn trends(&self, from: Millis, now: ClockReading) -> BTreeMap<Measure, Trend> {
        let points: Vec<&Point<N>> = self.points.iter().filter(|point| point.at + self.step > from).collect();
        let mut trends = BTreeMap::new();
        for (number, measure) in self.measures.iter().enumerate() {
            let known: Vec<_> = points.iter().filter(|point| !point.means[number].is_nan()).collect();
            let highest = known.iter().max_by(|one, other| one.peaks[number].total_cmp(&other.peaks[number]));
            let Some(highest) = highest else {
                continue;
            };
            let weight: f64 = known.iter().map(|point| f64::from(point.counts[number])).sum();
            let weighed =
                |point: &&&Point<N>| f64::from(point.means[number]) * f64::from(point.counts[number]);
            let hours = |at: Millis| at as f64 / 3_600_000.0;
            let line: Vec<(f64, f64)> =
                known.iter().map(|point| (hours(point.at), f64::from(point.means[number]))).collect();
            let trend = Trend {
                average: known.iter().map(weighed).sum::<f64>() / weight.max(1.0),
                peak: f64::from(highest.peaks[number]),
                peak_at: now.wall_of(highest.at),
                slope_per_hour: slope(&line),
            };
            trends.insert(*measure, trend);
        }
        trends
    }
}

/// The measurements of the last day, of the machine and of each instance.
#[derive(Debug, Clone)]
pub struct MetricsHistory {
    machine: Ring<12>,
    instances: HashMap<String, Ring<3>>,
}

impl Default for MetricsHistory {
    fn default() -> MetricsHistory {
        MetricsHistory { machine: Ring::new(OF_MACHINE, &MACHINE), instances: HashMap::new() }
    }
}

impl MetricsHistory {
    /// Takes a point that an earlier supervisor wrote; the points come oldest first. Points that are
    /// older than a day are left out, and so are points of a clock that was ahead.
    pub fn restore(&mut self, (of, point): ClosedPoint, now: ClockReading) {
        let at = now.clock_of(point.at);
        if at < millis(now.clock) - millis(KEPT) || at > millis(now.clock) {
            return;
        }
        match of {
            None => self.machine.restore(at, &point),
            Some(of) => self.ring(of).restore(at, &point),
        }
    }

    fn ring(&mut self, of: String) -> &mut Ring<3> {
        self.instances.entry(of).or_insert_with(|| Ring::new(OF_INSTANCE, &INSTANCE))
    }

    /// Takes a sample; returns the points that are over with it.
    pub fn push(&mut self, sample: &Sample, now: ClockReading) -> Vec<ClosedPoint> {
        let at = millis(sample.at);
        let over = self.machine.push(at, &of_machine(&sample.machine), now);
        let mut closed: Vec<ClosedPoint> = over.into_iter().map(|point| (None, point)).collect();
        for (id, usage) in &sample.instances {
            let id = id.to_string();
            let over = self.ring(id.clone()).push(at, &of_instance(usage), now);
            closed.extend(over.map(|point| (Some(id), point)));
        }
        self.instances.retain(|_, ring| {
            ring.forget(at);
            !ring.points.is_empty()
        });
        closed
    }

    /// What was measured within the last `since`, of an instance or (`None`) of the machine.
    pub fn since(&self, of: Option<&str>, since: Duration, now: ClockReading) -> ResourceHistory {
        let from = millis(now.clock) - millis(since);
        match of {
            None => self.machine.since(None, from, now),
            Some(id) => match self.instances.get(id) {
                Some(ring) => ring.since(of, from, now),
                None => Ring::new(OF_INSTANCE, &INSTANCE).since(of, from, now),
            },
        }
    }

    /// The trend of each measure of the machine, over all points that are kept.
    pub fn trends(&self, now: ClockReading) -> BTreeMap<Measure, Trend> {
        self.machine.trends(Millis::MIN / 2, now)
    }
}

/// The shortest span of a slope, in hours: growth over less time says nothing about an hour.
const SHORTEST: f64 = 0.25;

/// The slope of the line that fits best; `None` for fewer than three points or a span below
/// [`SHORTEST`].
fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let span = points.last().zip(points.first()).map_or(0.0, |(last, first)| last.0 - first.0);
    if points.len() < 3 || span < SHORTEST {
        return None;
    }
    let count = points.len() as f64;
    let middle = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (middle(|point| point.0), middle(|point| point.1));
    let (mut both, mut square) = (0.0, 0.0);
    for (px, py) in points {
        both += (px - x) * (py - y);
        square += (px - x).powi(2);
    }
    (square > 0.0).then(|| both / square)
}

fn sum(rates: impl Iterator<Item = f64>) -> Option<f64> {
    rates.fold(None, |sum: Option<f64>, rate| Some(sum.unwrap_or(0.0) + rate))
}

fn of_machine(machine: &MachineSample) -> [Option<f64>; 12] {
    let disks = |of: fn(&DiskSample) -> Option<f64>| sum(machine.disks.iter().filter_map(of));
    let networks = |of: fn(&NetworkSample) -> Option<f64>| {
        sum(machine.networks.iter().filter(|network| network.interface != "lo").filter_map(of))
    };
    let swap = percent(machine.swap_used_bytes, machine.swap_total_bytes);
    let pressure = machine.pressure;
    [
        machine.cpu_percent,
        (machine.memory_total_bytes > 0).then(|| machine.memory_percent()),
        (machine.swap_total_bytes > 0).then_some(swap),
        (machine.cores > 0).then(|| machine.load_per_core()),
        machine.fullest().map(|disk| disk.used_percent),
        disks(|disk| disk.read_bytes_per_s),
        disks(|disk| disk.written_bytes_per_s),
        networks(|network| network.received_bytes_per_s),
        networks(|network| network.sent_bytes_per_s),
        pressure.map(|pressure| pressure.cpu_percent),
        pressure.map(|pressure| pressure.memory_percent),
        pressure.map(|pressure| pressure.io_percent),
    ]
}

fn of_instance(usage: &Usage) -> [Option<f64>; 3] {
    [usage.cpu_percent, Some(usage.memory_bytes as f64), Some(f64::from(usage.processes))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InstanceId, Name};

    fn now(seconds: u64) -> ClockReading {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds);
        ClockReading { clock: Duration::from_secs(seconds), wall }
    }

    fn sample(seconds: u64, cpu: f64) -> Sample {
        let machine = MachineSample { cpu_percent: Some(cpu), ..MachineSample::default() };
        let id = InstanceId::sole(Name::new("web").unwrap());
        let usage = Usage { cpu_percent: Some(cpu), memory_bytes: seconds, processes: 1 };
        Sample { at: Duration::from_secs(seconds), machine, instances: HashMap::from([(id, usage)]) }
    }

    #[test]
    fn points_are_means_with_peaks_and_told_once_they_are_over() {
        let mut history = MetricsHistory::default();
        assert!(history.push(&sample(0, 10.0), now(0)).is_empty());
        assert!(history.push(&sample(15, 30.0), now(15)).is_empty());
        let closed = history.push(&sample(60, 50.0), now(60));
        let [(None, point)] = &closed[..] else { panic!("{closed:?}") };
        assert_eq!((point.at, point.samples), (now(0).wall, 2));
        assert_eq!(point.levels[&Measure::CpuPercent], Level { mean: 20.0, peak: 30.0 });
        let closed = history.push(&sample(360, 0.0), now(360));
        assert_eq!(closed.len(), 2, "the instance's six minutes are over, too");
        let told = history.since(None, Duration::from_secs(3600), now(360));
        assert_eq!(told.points.len(), 3);
        let mut unknown = sample(375, 0.0);
        unknown.machine.cpu_percent = None;
        history.push(&unknown, now(375));
        history.push(&sample(390, 10.0), now(390));
        let last = history.since(None, Duration::from_secs(60), now(390)).points.pop().unwrap();
        assert_eq!(last.levels[&Measure::CpuPercent].mean, 5.0, "what was not measured counts for nothing");
        let trend = told.trends[&Measure::CpuPercent];
        assert_eq!((trend.peak, trend.peak_at), (50.0, now(60).wall));
        assert!((trend.average - 22.5).abs() < 1e-6, "each sample counts the same: {trend:?}");
    }

    #[test]
    fn a_slope_is_that_of_the_line() {
        let mut history = MetricsHistory::default();
        for minute in 0..120 {
            history.push(&sample(minute * 60, 10.0 + minute as f64 / 2.0), now(minute * 60));
        }
        let trend = history.trends(now(7200))[&Measure::CpuPercent];
        assert!((trend.slope_per_hour.unwrap() - 30.0).abs() < 1e-3, "{trend:?}");
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 2.0)]), None);
        assert_eq!(slope(&[(1.0, 1.0); 5]), None);
    }

    #[test]
    fn a_day_is_kept_and_not_more() {
        let mut history = MetricsHistory::default();
        for quarter in 0..(30 * 3600 / 15) {
            history.push(&sample(quarter * 15, 1.0), now(quarter * 15));
        }
        assert!((1440..=1441).contains(&history.machine.points.len()));
        let ring = history.instances.values().next().unwrap();
        assert!((240..=241).contains(&ring.points.len()));
        let empty = Sample { at: Duration::from_secs(60 * 3600), ..Sample::default() };
        history.push(&empty, now(60 * 3600));
        assert!(history.instances.is_empty(), "who is gone for a day is forgotten");
    }

    #[test]
    fn another_supervisor_goes_on_where_the_first_one_stood() {
        let mut first = MetricsHistory::default();
        let mut written = Vec::new();
        for minute in 0..30 {
            written.extend(first.push(&sample(minute * 60, minute as f64), now(minute * 60)));
        }
        // The supervisor's clock begins anew, and the wall clock goes on.
        let later = ClockReading { clock: Duration::from_secs(5), wall: now(1800).wall };
        let mut ahead = written[0].clone();
        ahead.1.at = later.wall + Duration::from_secs(60);
        let mut second = MetricsHistory::default();
        written.into_iter().chain([ahead]).for_each(|point| second.restore(point, later));
        let told = second.since(None, KEPT, later);
        assert_eq!(told.points.len(), 29, "what was not over is lost, what is ahead is left out");
        assert_eq!(told.points[3].at, now(180).wall);
        assert_eq!(told.points, first.since(None, KEPT, now(1800)).points[..29]);
    }
}
