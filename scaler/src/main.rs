//! `kaai-scaler`: the scaler as a process of its own.

use clap::Parser;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = scaler::Args::parse();
    if args.common.is_ready {
        return Ok(runtime::admin::ask(args.common.admin_address).await?);
    }
    let rt = runtime::start("scaler", &args.common, None).await?;
    scaler::run(args.try_into()?, rt.clone()).await?;
    rt.finish().await
}
