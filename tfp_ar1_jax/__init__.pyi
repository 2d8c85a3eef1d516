# For type checkers and editors: the source is that of `tfp_ar1`.
from tfp_ar1 import LinearOperatorAR1Cholesky as LinearOperatorAR1Cholesky
from tfp_ar1 import MultivariateNormalANTE1 as MultivariateNormalANTE1
from tfp_ar1 import MultivariateNormalAR1 as MultivariateNormalAR1
from tfp_ar1 import MultivariateNormalARH1 as MultivariateNormalARH1
from tfp_ar1 import MultivariateNormalOU as MultivariateNormalOU
from tfp_ar1 import RhoVAE as RhoVAE
from tfp_ar1 import SequenceVAE as SequenceVAE
from tfp_ar1 import __version__ as __version__
from tfp_ar1 import inference as inference
from tfp_ar1 import layers as layers
from tfp_ar1 import params as params
from tfp_ar1 import priors as priors
from tfp_ar1 import sts as sts
from tfp_ar1 import vae as vae
