//! `kaai up`: everything on this machine, until Ctrl-C.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use builder::config::{CondaArgs, ImageArgs, ScanArgs};
use packager::walk::{Limits, Links};
use proto::packager::{ProjectOptions, Source};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    command::{deploy, invoke},
    connection::Reach,
    ending::{Ending, Result},
    home::{Contexts, Home},
    output::{self, Format, seconds},
    up::{Options, Up},
};

/// Start kaai on this machine: all five components and a bus, until Ctrl-C
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Port of the bus on 127.0.0.1; 0 takes any
    #[arg(long, default_value_t = 4222, env = "KAAI_BUS_PORT")]
    bus_port: u16,
    /// Address of the router; port 0 takes any
    #[arg(long, default_value = "127.0.0.1:8080", env = "KAAI_ROUTER_ADDRESS")]
    router_address: SocketAddr,
    /// Address of /live, /ready and /metrics
    #[arg(long, default_value = "127.0.0.1:0", env = "KAAI_ADMIN_ADDRESS")]
    admin_address: SocketAddr,
    /// The nats-server program [default: looked for beside kaai and on PATH]
    #[arg(long, env = "KAAI_NATS_SERVER", value_name = "FILE")]
    nats_server: Option<PathBuf>,
    /// The uv program [default: looked for beside kaai and on PATH]
    #[arg(long, env = "KAAI_UV", value_name = "FILE")]
    uv: Option<PathBuf>,
    /// Seconds that a lower need must hold before replicas go
    #[arg(long, default_value_t = 60, env = "KAAI_SCALE_DOWN_DELAY")]
    scale_down_delay: u64,
    #[command(flatten)]
    size: deploy::SizeArgs,
    /// Deploy this folder once all is up, and ask it what its sample-request.json says
    #[arg(long, value_name = "FOLDER")]
    deploy: Option<PathBuf>,
    /// End after the deployment of --deploy has answered
    #[arg(long, requires = "deploy")]
    exit: bool,
    /// Which logs are written to kaai.log in the state folder
    #[arg(long, default_value = "info", env = "KAAI_LOG")]
    log: String,
    #[command(flatten)]
    images: ImageArgs,
    #[command(flatten)]
    scan: ScanArgs,
    #[command(flatten)]
    conda: CondaArgs,
}

/// Starts, deploys what was asked for, waits for Ctrl-C, and stops.
pub async fn run(args: Args, reach: &Reach, format: Format) -> Result {
    let begun = Instant::now();
    let home = Home::locate(reach.home.as_deref())?;
    let shutdown = runtime::shutdown::on_signal();
    // A caller and a replica each take a file, and the usual limit is 1024.
    router::raise_open_file_limit();
    let options = Options {
        home: home.clone(),
        bus_port: args.bus_port,
        router: args.router_address,
        admin: args.admin_address,
        nats_server: args.nats_server.clone(),
        uv: args.uv.clone(),
        conda: args.conda.read().map_err(|wrong| Ending::usage(wrong, "see `kaai up --help`"))?,
        scale_down_delay: Duration::from_secs(args.scale_down_delay),
        project_limits: args.size.limits(),
        images: args.images.read().map_err(|wrong| Ending::usage(wrong, "see `kaai up --help`"))?,
        scan: {
            let read = args.scan.read(args.images.registry.is_some());
            read.map_err(|wrong| Ending::usage(wrong, "see `kaai up --help`"))?
        },
        registry_login: args.images.registry_login.clone(),
    };
    logs(&home, &args.log)?;
    let Some(mut up) = Up::start(options, &shutdown).await? else { return Ok(()) };
    if reach.home.is_none() {
        keep_context(&up);
    }
    announce(&up, &home, begun, format);
    let lived = tokio::select! {
        lived = live(&args, reach, &home, format) => lived,
        failed = up.failed() => Err(failed),
        () = shutdown.cancelled() => Ok(()),
    };
    if format == Format::Text {
        output::aside("stopping: last requests, replicas, bus");
    }
    up.stop().await;
    lived
}

/// Logs go to a file: the terminal belongs to the user.
fn logs(home: &Home, filter: &str) -> Result {
    std::fs::create_dir_all(home.path())
        .and_then(|()| runtime::telemetry::init_file(&home.join("kaai.log"), filter))
        .map_err(|error| {
            Ending::platform(format!("{} cannot be written: {error}", home.path().display()), "choose another --home")
        })
}

/// Makes this kaai the context `local`. Another current one stays, and so does everything when this one has a folder of its own.
fn keep_context(up: &Up) {
    if let Ok(mut contexts) = Contexts::read() {
        contexts.contexts.insert("local".to_owned(), up.context.clone());
        contexts.current.get_or_insert_with(|| "local".to_owned());
        if let Err(error) = contexts.write() {
            tracing::warn!(?error, "the context could not be kept; use --home");
        }
    }
}

fn announce(up: &Up, home: &Home, begun: Instant, format: Format) {
    match format {
        Format::Json => output::line(
            &json!({ "bus": up.context.bus, "router": up.context.router, "admin": format!("http://{}", up.admin), "home": home.path() }).to_string(),
        ),
        Format::Text => {
            let bus = up.context.bus.trim_start_matches("nats://");
            let router = up.context.router.trim_start_matches("http://");
            let what = format!("5 components, bus on {bus}, router on {router}");
            output::aside(&format!("up           {what:60} {}", seconds(begun.elapsed())));
        }
    }
}

/// What is done while all is up: the deployment that was asked for, then nothing until the end.
async fn live(args: &Args, reach: &Reach, home: &Home, format: Format) -> Result {
    let Some(folder) = &args.deploy else {
        if format == Format::Text {
            output::aside(&format!(
                "\nnext   deploy a project                   {} deploy FOLDER",
                called(reach, home)
            ));
        }
        return std::future::pending().await;
    };
    let deployed = demonstrate(folder, args.size.limits(), reach, home, format).await;
    match (args.exit, deployed) {
        (true, ended) => ended,
        (false, Ok(())) => std::future::pending().await,
        (false, Err(ending)) => {
            // The kaai stays: the user mends the project and deploys again from another terminal.
            ending.tell(format);
            std::future::pending().await
        }
    }
}

async fn demonstrate(folder: &std::path::Path, limits: Limits, reach: &Reach, home: &Home, format: Format) -> Result {
    let shown = folder.display();
    let folder = std::fs::canonicalize(folder)
        .map_err(|error| Ending::mend(format!("{shown} cannot be read: {error}"), "give the folder of a project"))?;
    let own = Reach { context: None, home: Some(home.path().to_owned()), workspace: None };
    let connection = own.connect().await?;
    let service = packager::project::default_name(&folder)?;
    if format == Format::Text {
        output::aside(&format!("\ndeploying {shown}"));
    }
    let options = ProjectOptions::default();
    packager::project::read_within(&folder, &options, &service, limits, Links::Anywhere)?;
    let request = deploy::plain_request(Source::Folder(folder.display().to_string()), options);
    let limit = Duration::from_secs(1800);
    let deployed = deploy::deploy(&connection, &service, &request, format, limit).await?;

    let Ok(sample) = std::fs::read(folder.join("sample-request.json")) else {
        return Ok(());
    };
    let begun = Instant::now();
    let answer = invoke::ask(&connection, &service, sample.clone().into(), &[], Duration::from_secs(60)).await?;
    let took = begun.elapsed();
    let says = String::from_utf8_lossy(answer.body()).into_owned();
    if !answer.status().is_success() {
        return Err(Ending::mend(
            format!("{service} answered {}: {says}", answer.status()),
            format!("look at its log: kaai logs {service}"),
        ));
    }
    match format {
        Format::Json => output::json(
            &json!({ "deployed": deployed, "answer": serde_json::from_slice::<serde_json::Value>(answer.body()).unwrap_or_default() }),
        ),
        Format::Text => {
            let asks = String::from_utf8_lossy(&sample);
            output::aside(&format!("\nasking it    {}", shorten(&asks, 60)));
            output::aside(&format!("it says      {:60} {}", shorten(&says, 60), seconds(took)));
            let kaai = called(reach, home);
            output::aside(&format!("\nnext   change a line of score.py and run    {kaai} deploy {shown}"));
            output::aside(&format!("       watch every event                    {kaai} events --follow"));
            output::aside(&format!("       see everything at once               {kaai} status"));
        }
    }
    Ok(())
}

/// How the user's next command begins, so that it is found and reaches this kaai.
fn called(reach: &Reach, home: &Home) -> String {
    let program = output::program();
    match reach.home {
        Some(_) => format!("KAAI_HOME={} {program}", output::quoted(home.path())),
        None => program,
    }
}

fn shorten(text: &str, most: usize) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
