"""The main job: deepspeed launch/train.py --ds_config ds_configs/zero2.json [section.field=value ...]"""

import sys

from storyteller_ds.cli.start import main

if __name__ == "__main__":
    sys.argv[:1] = ["storyteller", "train"]
    main()
