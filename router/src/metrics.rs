//! What `/metrics` says of the router. Times are counted in fixed buckets without a lock; the rest is read from the gates when asked.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{
        MetricType, TypedMetric,
        counter::{ConstCounter, Counter},
        gauge::{ConstGauge, Gauge},
    },
    registry::{Registry, Unit},
};
use tokio::time::Duration;

use crate::{gate::Totals, refusal::STAGES, routes::Routes};

/// Services that are told apart by label; all others are summed under one name, so that the number of series is bounded.
const SERVICES: usize = 500;
/// That name; no service can have it.
const OTHERS: &str = "_others";

/// Upper bounds in microseconds: from what a router costs to what a model may take.
const BOUNDS: [u64; 14] =
    [25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000, 10_000_000, 60_000_000];

/// What is measured while requests are served; shared by all threads.
#[derive(Debug, Default, Clone)]
pub(crate) struct Meters {
    /// From the queue's entry to a slot.
    pub(crate) queue_wait: Arc<Histogram>,
    /// The router's own time: before the queue, and from the slot until the request goes out.
    pub(crate) routing: Arc<Histogram>,
    /// From the request's going out to the head of the answer.
    pub(crate) upstream: Arc<Histogram>,
    /// Requests for no service that there is.
    pub(crate) strays: Counter,
    /// Callers' connections.
    pub(crate) connections: Gauge,
}

impl Meters {
    /// Adds all metrics to a registry; `routes` are read at each scrape.
    pub(crate) fn register(registry: &mut Registry, routes: Arc<Routes>) -> Self {
        let meters = Self::default();
        let times = [
            ("queue_wait", "Time from entering the queue to a slot", &meters.queue_wait),
            ("routing", "The router's own time before a request goes out", &meters.routing),
            ("upstream", "Time from a request's going out to the head of the answer", &meters.upstream),
        ];
        for (name, help, histogram) in times {
            registry.register_with_unit(name, help, Unit::Seconds, SharedHistogram(histogram.clone()));
        }
        registry.register("strays", "Requests for no service that there is", meters.strays.clone());
        registry.register("connections", "Callers' connections", meters.connections.clone());
        registry.register_collector(Box::new(Services(routes)));
        meters
    }
}

/// A histogram of atomics.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub(crate) fn observe(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|bound| bound * 1000 < nanos);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(nanos / 1000, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct SharedHistogram(Arc<Histogram>);

impl TypedMetric for SharedHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for SharedHistogram {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        let bounds = BOUNDS.iter().map(|bound| *bound as f64 / 1e6).chain([f64::INFINITY]);
        let counts = self.0.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.micros.load(Ordering::Relaxed) as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// What is read from the gates.
#[derive(Debug)]
struct Services(Arc<Routes>);

struct Row {
    workspace: String,
    service: String,
    totals: Totals,
}

impl Services {
    /// One row a service, in the order of their names, and one for those past the bound.
    fn rows(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self
            .0
            .gates()
            .into_iter()
            .map(|gate| Row {
                workspace: gate.workspace().to_string(),
                service: gate.service().to_string(),
                totals: gate.totals(),
            })
            .collect();
        rows.sort_by(|a, b| (&a.workspace, &a.service).cmp(&(&b.workspace, &b.service)));
        if rows.len() > SERVICES {
            let mut others =
                Row { workspace: OTHERS.to_owned(), service: OTHERS.to_owned(), totals: Totals::default() };
            rows.drain(SERVICES..).for_each(|row| others.totals.add(&row.totals));
            rows.push(others);
        }
        rows
    }
}

impl Collector for Services {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let rows = self.rows();
        let mut requests =
            encoder.encode_descriptor("requests", "Answers by status class", None, MetricType::Counter)?;
        for row in &rows {
            for (count, class) in row.totals.answers.iter().zip(["1xx", "2xx", "3xx", "4xx", "5xx"]) {
                let labels = [("workspace", row.workspace.as_str()), ("service", &row.service), ("class", class)];
                ConstCounter::new(*count).encode(requests.encode_family(&labels)?)?;
            }
        }
        let mut refused = encoder.encode_descriptor("refused", "Refusals by stage", None, MetricType::Counter)?;
        for row in &rows {
            for (count, stage) in row.totals.refused.iter().zip(STAGES).filter(|(count, _)| **count > 0) {
                let labels =
                    [("workspace", row.workspace.as_str()), ("service", &row.service), ("stage", stage.name())];
                ConstCounter::new(*count).encode(refused.encode_family(&labels)?)?;
            }
        }
        let gauges = [
            ("in_flight", "Requests in replicas"),
            ("queued", "Requests in the queue"),
            ("ready_replicas", "Replicas that may be chosen and are well"),
        ];
        for (index, (name, help)) in gauges.into_iter().enumerate() {
            let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for Row { workspace, service, totals } in &rows {
                let value = [totals.in_flight, totals.queued, totals.ready][index];
                let labels = [("workspace", workspace.as_str()), ("service", service.as_str())];
                ConstGauge::new(i64::from(value)).encode(gauge.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proto::{
        deployer::Route,
        id::Generation,
        spec::{Auth, RequestLimits, Scaling},
    };

    use super::*;
    use crate::refusal::Stage;

    fn route(service: &str) -> Route {
        Route {
            workspace: "default".parse().unwrap(),
            service: service.parse().unwrap(),
            generation: Generation(1),
            replicas: Vec::new(),
            starting: 0,
            auth: Auth::None,
            key_digests: Vec::new(),
            requests: RequestLimits::default(),
            scaling: Scaling::default(),
            extra: proto::Extra::default(),
        }
    }

    fn scrape(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn times_are_counted_under_the_bound_that_they_do_not_pass() {
        let mut registry = Registry::default();
        let meters = Meters::register(&mut registry, Routes::new().0);
        for micros in [10, 25, 26, 3_000_000, 600_000_000] {
            meters.routing.observe(Duration::from_micros(micros));
        }
        let text = scrape(&registry);
        for line in [
            "routing_seconds_count 5",
            "routing_seconds_sum 603.000061",
            "routing_seconds_bucket{le=\"0.000025\"} 2",
            "routing_seconds_bucket{le=\"0.00005\"} 3",
            "routing_seconds_bucket{le=\"60.0\"} 4",
            "routing_seconds_bucket{le=\"+Inf\"} 5",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn each_service_has_its_own_numbers_until_there_are_too_many() {
        let mut registry = Registry::default();
        let (routes, _news) = Routes::new();
        Meters::register(&mut registry, routes.clone());
        routes.put_all((0..SERVICES + 2).map(|n| (route(&format!("s-{n:04}")), 1)));
        for name in ["s-0000", "s-0500", "s-0501"] {
            let gate = routes.find("default", name).unwrap();
            gate.answered(200);
            gate.answered(503);
            gate.refused(Stage::Capacity);
        }
        let text = scrape(&registry);
        for line in [
            "requests_total{workspace=\"default\",service=\"s-0000\",class=\"2xx\"} 1",
            "requests_total{workspace=\"_others\",service=\"_others\",class=\"5xx\"} 2",
            "refused_total{workspace=\"default\",service=\"s-0000\",stage=\"capacity\"} 1",
            "in_flight{workspace=\"default\",service=\"s-0000\"} 0",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(!text.contains("s-0500"));
    }
}
