//! The router as a program.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = router::Args::parse();
    if let Some(router::Command::Hold(hold)) = args.command {
        runtime::telemetry::init(args.common.log_format, &args.common.log_level);
        return Ok(router::hold(hold).await?);
    }
    if args.common.is_ready {
        return Ok(runtime::admin::ask(args.common.admin_address).await?);
    }
    let rt = runtime::start("router", &args.common, None).await?;
    router::raise_open_file_limit();
    router::run(args.try_into()?, rt.clone()).await?;
    rt.finish().await
}
