//! The deployer as a program of its own.

use clap::Parser;
use deployer::Args;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.common.is_ready {
        return Ok(runtime::admin::ask(args.common.admin_address).await?);
    }
    let rt = runtime::start("deployer", &args.common, Some(&args.store)).await?;
    deployer::run(args.try_into()?, rt.clone()).await?;
    rt.finish().await
}
